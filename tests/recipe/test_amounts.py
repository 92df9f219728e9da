import pytest

from hfbsz.recipe.amounts import Amount, short


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1.2M tokens", 1.2e6, "tokens"),
        ("1.2Mtok", 1.2e6, "tokens"),
        ("512 sequences", 512, "sequences"),
        ("512seq", 512, "sequences"),
        ("300 steps", 300, "steps"),
        ("2 epochs", 2, "epochs"),
        ("1%", 1, "%"),
        ("250B tokens", 250e9, "tokens"),
        ("3e-1 epochs", 0.3, "epochs"),
    ],
)
def test_forms(text, value, unit):
    amount = Amount.parse(text)
    assert (amount.value, amount.unit) == (pytest.approx(value), unit)
    assert Amount.parse(str(amount)) == amount


@pytest.mark.parametrize("text", ["64", "tokens", "-3 tokens", "3 apples", "1,000 tokens", "", "nan tokens"])
def test_invalid_amounts(text):
    with pytest.raises(ValueError, match="amount"):
        Amount.parse(text)


def test_conversion_to_sequences():
    facts = {"total": 1000, "rows": 50, "tokens_per_row": 128}
    sequences = [Amount.parse(text).sequences(**facts) for text in ("1280tok", "7seq", "2epochs", "5%")]
    assert sequences == [10, 7, 100, 50]
    with pytest.raises(LookupError, match="number of rows"):
        Amount.parse("2 epochs").sequences()
    with pytest.raises(ValueError, match="steps"):
        Amount.parse("2 steps").sequences(**facts)


def test_short_counts():
    assert [short(n) for n in (950, 9_500, 12_400, 1_200_000, 3_070_000_000)] == [
        "950",
        "9,500",
        "12.4k",
        "1.2M",
        "3.07B",
    ]
