"""Files of JSON lines that grow for as long as a run lasts: metrics, events, the ledger.

On a disk such a file is one file that is appended to. Object storage cannot append, and putting the whole file at each
flush would cost bytes that grow with its square. There it is

    metrics.jsonl                          the newest lines, and above them the list of segments, if there are any
    metrics.segments/<16 hex digits>       older lines, in pieces that are put once and never changed

1. A put of metrics.jsonl is what commits: a segment counts if the list names it, so a writer may be killed at any
   instant, and a reader that has read the list has one state of the file. Names are drawn, so no writer overwrites
   the segment of another.
2. When the newest lines have grown to `SEAL_BYTES` they become a segment; small segments are put together into one of
   `MIDDLE_BYTES`, and those into one of `LARGEST_BYTES`. So a line goes up a bounded number of times.
3. A segment that the list no longer names is removed one flush later. A reader that comes too late for it finds the
   new list, and reads that (`whole_lines`).

layout.py: the list of segments. reading.py: one state of a file, local or remote. cursor.py: what is new since the last
look. The writer is trainer/records/jsonl.py.
"""
