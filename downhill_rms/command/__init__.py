"""The command line: commands that call the library and print what it returns.

Here stand the commands, their looks, run directories, the check before training, and
demonstrations: no logic that a program of one's own would miss. It may import everything else, and
nothing imports it. Open ``cli.py`` first.
"""
