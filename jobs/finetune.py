"""Fine-tune a model for a task; the YAML says which.

ray job submit --working-dir . -- python jobs/finetune.py jobs/classify.yaml model.name=s3://bucket/model data.path=s3://bucket/train.parquet data.validation=s3://bucket/dev.parquet output.path=s3://bucket/tuned/ workers.gpus=1
"""

import sys

from raybert.__main__ import main

sys.exit(main(["finetune", *sys.argv[1:]]))
