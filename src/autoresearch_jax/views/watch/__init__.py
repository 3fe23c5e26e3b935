"""The views that follow a loop: a terminal (`screen`), a page (`web`) or a file (`report_file`).

They only read. What they show was written by agents or by their code, so each text is bounded and
made safe when it is read, and no view interprets it as markup.
"""
