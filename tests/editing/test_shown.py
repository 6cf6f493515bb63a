from editing.shown import in_markdown, printable


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable("a\x1b[31m\x9bb\u202ec") == "a\\x1b[31m\\x9bb\\u202ec"
    assert printable("Málaga\n北京") == "Málaga\n北京"
    assert printable("a\udcffb") == "a\\udcffb"


def test_markdown_shows_text_letter_by_letter() -> None:
    assert in_markdown("at https://x.y\n- a@b") == r"at https\:\/\/x\.y \- a\@b"
    assert in_markdown("<script>[a](b)|*c*") == "\\<script\\>\\[a\\]\\(b\\)\\|\\*c\\*"
