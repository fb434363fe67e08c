"""The whole loop as a Ray job.

ray job submit --working-dir . -- python jobs/pipeline.py CONFIG --out RUN [section.key=value ...]

RUN must be a URI or a path that every node sees.  Ends with the exit code of `divray run`.
"""

import sys

from divray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
