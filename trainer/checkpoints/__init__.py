"""Checkpoints that any number of ranks can write and any other number, at any ZeRO stage, can read.

checkpoints/step_00001000/
    rank_0000-<attempt>.safetensors   the fragments that this rank owns, keyed role/parameter/start
    rank_0000-<attempt>.json          its part of the index
    index.json                        (role, parameter, flat range) -> (file, byte), with a CRC-32 per block of bytes
    state.json                        step, skips, position in the data, what it was trained from, world, stage
    COMPLETE                          the attempt, sha256 of the two; written last; without it the folder is ignored
    DAMAGED                           what a start found wrong with it: ignored, too, and left for the user
    KEEP                              put there by a user: never removed

No rank gathers anything. Each writes what it owns, and on resume reads the byte ranges that it owns then. Names hold
the attempt (a token per save), so that a file of a complete checkpoint is never written again, and two attempts never
mix. What failed attempts left, the next successful one at that step removes.

1. catalog.py: which checkpoints there are, and which of them a start may go on from
2. commits.py: the records of one, how it becomes complete, and how it is marked as damaged; index.py: its index
3. snapshot.py copies to host memory, writer.py uploads in the background
4. reader.py reads ranges, restores a start from them, and verifies; exporting.py puts whole tensors together
5. retention.py removes
"""
