"""Views: tables derived from the journal, kept in memory first and flushed into an engine in the background."""
