"""What can be said to each command of ``pfc-data``: a file for each."""

from lightning_pfc.commands.data_words import align, check, clean, convert, index, make_bin, merge, overlap

COMMANDS = (convert, check, make_bin, align, clean, overlap, merge, index)  # in the order of --help
