"""One stage of a run that has begun, as a Ray job.

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/stage.py STAGE RUN [--round N] [--force] [engine.key=value ...]

A stage that fails ends the job with 1, whatever the exit code of `divray STAGE` was.
"""

import sys

from divray.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
