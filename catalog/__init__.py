"""Facts, readers, scores and sample rows of the data sets; a package, so that no other of this name is taken for it."""
