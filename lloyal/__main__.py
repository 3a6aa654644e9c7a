#!python
"""``python -m lloyal``, and the ``lloyal`` command: this file, installed under that name.

So Ctrl-C is quiet from the start; `-m` imports the package before anything here runs.
"""

import os
import signal

if __name__ == "__main__":
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        # Importing takes a moment, in which nothing has begun that would need to be undone.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from lloyal.cli import main

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
