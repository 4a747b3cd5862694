import io

from rich.console import Console

from llc_jax.corpus import progress


def test_a_terminal_gets_a_bar_and_others_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    with progress.show("images", 1000.0) as shown:
        shown.add(100, 250.0)
        shown.say("skipped: one")
    err = capsys.readouterr().err
    assert "25%, 100 images, " in err
    assert " left\nskipped: one" in err
    terminal = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda stderr: progress_console(terminal),
    )
    with progress.show("images", 1000.0) as shown:
        shown.add(100, 250.0)
        shown.say("skipped: [red]one")
    assert "25%" in terminal.getvalue()
    assert "100 images" in terminal.getvalue()
    assert "skipped: [red]one" in terminal.getvalue()


def progress_console(file):
    return Console(file=file, force_terminal=True, width=100)
