"""Labelled tasks: files of them, rows behind them, and a hundred about Python that need no file."""
