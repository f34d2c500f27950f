"""Predictions kept in a table, in which only changed images are scored again.

The engine fills the store, the head scores what changed block by block from there, and the table is
changed in one step. Rows have the order in which the store gives features, not the dataset's: one
pass over the store reads 2.4 times as fast as picking rows, and the key tells each.
"""

from dinoprobe.predicted.tables import open_table
from dinoprobe.predicted.terms import Terms, classifier_digest
from dinoprobe.predicted.updating import Updated, refuse_tokens, update

__all__ = ["Terms", "Updated", "classifier_digest", "open_table", "refuse_tokens", "update"]
