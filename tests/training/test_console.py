from llc_jax.training import console
from llc_jax.training.console import TimeLeft, epoch_lines

CODEBOOK = {
    "epoch": 15,
    "loss": 3.8591,
    "logit_scale": 0.2236,
    "accuracy": 0.9271,
    "flipped_bits": 0.0012,
    "unique_codes": 100,
    "min_distance": 2,
    "learning_rate": 0.1,
    "images_per_second": 236.1,
}
EVALUATION = {
    "class_logits": 0.501,
    "class_logits_top5": 0.8,
    "soft": 0.52,
    "soft_top5": 0.8,
    "mhd": 0.49,
    "mhd_first": 0.48,
    "ed": 0.31,
    "ed_official": 0.31,
    "bits_right": 18.2,
}


def test_lines_of_an_epoch_break_between_metrics():
    lines = epoch_lines("codebook", CODEBOOK, EVALUATION, "3 h 20 min", 80)
    assert lines == [
        "codebook    epoch 15  loss 3.859  training accuracy 92.7%  0.12% of bits flipped",
        "            100 unique codes  least distance 2  3 h 20 min left",
        "            evaluation:  accuracy 50.1%  soft 52.0%  MHD 49.0%  ED 31.0%",
    ]
    assert max(map(len, epoch_lines("codebook", CODEBOOK, EVALUATION, "9 min", 60))) <= 60


def test_a_stage_without_a_codebook_has_one_line():
    values = {"epoch": 1, "loss": 0.1234567, "bits_right": 0.875, "learning_rate": 0.1}
    assert epoch_lines("instance", values, {}, "", 80) == [
        "instance    epoch 1  loss 0.123  training bits right 87.5%"
    ]


def test_a_metric_without_words_has_its_name():
    assert epoch_lines("hashnet_16", {"epoch": 1, "beta": 2.5}, {}, "", 80) == [
        "hashnet_16  epoch 1  beta 2.5"
    ]


def test_the_time_left_is_that_of_all_stages(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    left = TimeLeft(num_steps=3000, batch_size=100)
    assert left.after(0) == ""
    left.tick(1, 50.0)
    assert left.after(1) == "1 h 40 min"
    assert not left.is_worth_saying
    now[0] = 40.0  # Ten steps, and an evaluation that the rate does not tell of.
    left.tick(11, 50.0)
    assert left.after(11) == "3 h 19 min"
    assert left.is_worth_saying
    assert left.after(2994) == "24 s"
    assert left.after(3000) == ""
    left.tick(2994, 50.0)
    assert not left.is_worth_saying


def test_a_long_step_is_enough_to_know_the_time_left():
    left = TimeLeft(num_steps=1000, batch_size=128)
    left.tick(1, 128 / 90)
    assert left.is_worth_saying
    assert left.after(1) == "24 h 58 min"
