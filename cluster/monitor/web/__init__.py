"""The monitor as a web page: runs from their own files, live or finished, at any URI. Reading never disturbs a run.

1. history.py keeps what was read of a training stage: all numbers in columns, all events; each byte is read once
2. run_reading.py keeps one run, whoever looks at it: its stages, pictures, configs, and jobs with their logs
3. curves.py thins a curve to what a screen shows; marks.py puts events on the same axis; codes.py maps the codes in
   use; evaluations.py has the numbers of several runs as a table
4. access.py says who may ask; server.py answers, and looks at the runs that somebody watches
5. page.html, static/ and vendored/ are the page: no build step, and no other host is asked for anything

What comes from a run reaches the page as JSON, and the page shows it as text alone.
"""
