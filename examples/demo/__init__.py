"""`make demo`: files, attachments and streams from message to stored row, with the samples in `dummy_data`."""
