"""Make shards of token ids of a corpus, to pretrain on.

ray job submit --working-dir . -- python jobs/prepare.py jobs/prepare.yaml model.name=s3://bucket/tokenizer data.path=s3://bucket/docs/ output.path=s3://bucket/tokens/
"""

import sys

from raybert.__main__ import main

sys.exit(main(["prepare", *sys.argv[1:]]))
