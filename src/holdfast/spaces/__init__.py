"""Document spaces: the entry that a batch is in the journal, and the rows that it becomes."""
