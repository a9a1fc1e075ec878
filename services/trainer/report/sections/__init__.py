"""The parts of the page, in files by topic: values in, HTML out, everything from outside escaped."""
