"""What is going on in a run: watching.py reads it, data_view.py its data, monitor_view.py draws it."""
