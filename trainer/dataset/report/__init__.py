"""What a user sees of a prepared dataset: the report as text and as a page, the contact sheet. Imports manifest."""
