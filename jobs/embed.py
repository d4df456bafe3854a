"""Embed a corpus: every row exactly once in Parquet. Submitted again, it goes on.

ray job submit --working-dir . -- python jobs/embed.py jobs/embed.yaml model.name=s3://bucket/model data.path=s3://bucket/docs/ output.path=s3://bucket/vectors/ workers.count=[1,8] workers.gpus=1
"""

import sys

from raybert.__main__ import main

sys.exit(main(["embed", *sys.argv[1:]]))
