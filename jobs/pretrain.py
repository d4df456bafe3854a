"""Pretrain an encoder on token shards, on many nodes. Submitted again, it goes on from its newest checkpoint.

ray job submit --working-dir . -- python jobs/pretrain.py jobs/pretrain.yaml data.path=s3://bucket/tokens/ output.path=s3://bucket/run/ train.steps=100000 workers.count=8 workers.gpus=1
"""

import sys

from raybert.__main__ import main

sys.exit(main(["pretrain", *sys.argv[1:]]))
