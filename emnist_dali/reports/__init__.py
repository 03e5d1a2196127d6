"""Self-contained HTML pages: on runs, on the data and the pipeline, on a sweep."""
