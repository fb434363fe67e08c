"""One stage of a run that has begun, as a Ray job.

ray job submit --working-dir . -- python jobs/stage.py STAGE RUN [--round N] [--force] [engine.key=value ...]

Ends with the exit code of `divray STAGE`.
"""

import sys

from divray.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
