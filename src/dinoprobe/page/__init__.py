"""`dinoprobe open`: a page on this machine to predict, review, relabel and refit."""
