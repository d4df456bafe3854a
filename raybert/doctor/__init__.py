"""raybert doctor: is this machine or cluster fit for the job?

words     the command line, which is that of the job, with `doctor` before it
needs     what a job needs of the nodes
gather    asks every node; the only file here that knows Ray
machine, storage, model   what runs on a node, and answers with plain values
cluster_checks, job_checks   what the answers mean: pure functions
findings  one line of the result, and the table
command   all of it
"""
