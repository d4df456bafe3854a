"""Search a folder of vectors: the exact nearest rows.

ray job submit --working-dir . -- python jobs/search.py s3://bucket/vectors/ 'how do I read a gzip file' k=5 format=json
"""

import sys

from raybert.__main__ import main

sys.exit(main(["search", *sys.argv[1:]]))
