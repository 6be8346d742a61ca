"""Files at any URI: on a disk, or in object storage.

1. uris.py and places.py: what a URI is, and what the config may name
2. files.py: read, write, list, remove, one function each; this package offers them as `storage.read_bytes`
3. on a disk: local_disk.py, local_listing.py. In object storage: object_clients.py (s3fs and what else fsspec opens),
   object_buckets.py (obstore, for what is done often on S3); object_reads.py, object_writes.py, object_listing.py,
   listing_pages.py, upload_marks.py
4. retries.py, pacing.py: trying again, and not all at once; outside_errors.py, store_errors.py: foreign exceptions
   become ours; request_counts.py: how many were sent
5. watchdog.py says what is waited for; tar.py reads and writes archives
"""

from data_pipeline.storage.files import (
    Entry,
    UnfinishedUpload,
    abort_upload,
    absolute,
    canonical_json,
    commit_bytes,
    create_bytes,
    entries,
    exists,
    filesystem,
    fingerprint,
    holds,
    is_remote,
    iter_entries,
    join,
    list_names,
    local_path,
    open_reader,
    read_bytes,
    read_json,
    read_range,
    read_ranges,
    remove_file,
    remove_tree,
    sha256,
    size,
    stat,
    unfinished_uploads,
    walk,
    write_bytes,
    write_json,
    write_stream,
)
from data_pipeline.storage.request_counts import counted, requests

__all__ = [
    "Entry",
    "UnfinishedUpload",
    "abort_upload",
    "absolute",
    "canonical_json",
    "commit_bytes",
    "counted",
    "create_bytes",
    "entries",
    "exists",
    "filesystem",
    "fingerprint",
    "holds",
    "is_remote",
    "iter_entries",
    "join",
    "list_names",
    "local_path",
    "open_reader",
    "read_bytes",
    "read_json",
    "read_range",
    "read_ranges",
    "remove_file",
    "remove_tree",
    "requests",
    "sha256",
    "size",
    "stat",
    "unfinished_uploads",
    "walk",
    "write_bytes",
    "write_json",
    "write_stream",
]
