"""The one way to the terminal: output.py prints, safe_console.py keeps control characters out."""
