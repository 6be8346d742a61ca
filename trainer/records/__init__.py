"""What a run writes down: metrics, events, environment, and who else is shown them.

1. run_directory.py, jsonl.py: the files; record_shapes.py: what may stand in them
2. meter.py, goodput.py: the numbers; trackers/: TensorBoard, Prometheus, Weights & Biases
"""
