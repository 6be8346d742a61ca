"""One driver per stage: who may write a folder, and what a folder's owner is.

1. lease.py takes, renews and loses a lease; lease_record.py is its file
2. owned_folders.py marks the folders that a run made, so that nothing else is ever removed
"""
