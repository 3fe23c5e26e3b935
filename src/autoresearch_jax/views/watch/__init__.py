"""What happens in a loop, as a page in the browser (`web`) or a file to send (`report_file`).

Everything here only reads. What it shows was written by agents or by code of theirs, so each text
is bounded and made safe on the way in, and no view takes any of it as markup.
"""
