"""`python -m benchmarks --only cycle --servers postgresql`."""

if __name__ == "__main__":  # the processes of a crew import this file, too, and need nothing of it
    from .cli import main

    main()
