"""The whole loop as a Ray job, from a clone of the project on a cluster that has the project's image or requirements.

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/pipeline.py CONFIG --out RUN [section.key=value ...]

`--runtime-env jobs/runtime_env.yaml` installs the requirements first where the cluster has only Ray.  RUN must be a URI or a
path that every node sees.  The same line goes on with a run whose driver was lost.  A run that fails ends the job with 1,
whatever the exit code of `divray run` was.
"""

import sys

from divray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
