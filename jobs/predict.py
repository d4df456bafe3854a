"""Predict with a model for every row of a corpus, exactly once in Parquet.

ray job submit --working-dir . -- python jobs/predict.py jobs/predict.yaml model.name=s3://bucket/tuned/model data.path=s3://bucket/docs/ output.path=s3://bucket/labels/ workers.gpus=1
"""

import sys

from raybert.__main__ import main

sys.exit(main(["predict", *sys.argv[1:]]))
