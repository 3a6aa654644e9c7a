"""``python -m lloyal``: the same as the ``lloyal`` command."""

from lloyal.cli import main

if __name__ == "__main__":
    main()
