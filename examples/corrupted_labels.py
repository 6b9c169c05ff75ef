"""Do exits that mimic each other keep a network from learning wrong labels? Handwritten digits.

    python examples/corrupted_labels.py [--seeds 10] [--first 0] [--out docs/branches_digits.md]

The network of `branches_digits.py`, trained where a share of the labels is drawn at random (Li and Chen 2020 do so with
CIFAR-100). Needs `pip install anytimeify scikit-learn`, and about five minutes on one core.
"""

from __future__ import annotations

from branches_digits import ONE_NETWORK, arguments, digits, gain, results, table, write_section

TRAINING, EPOCHS = 500, 40
SHARES = (0.2, 0.5)


def main() -> None:
    """Train, compare, print; with `--out` also write the table into a page."""
    options = arguments(__doc__ or "")
    seeds = range(options.first, options.first + options.seeds)
    rows: dict[str, list[list[float]]] = {}
    gains: list[str] = []
    for share in SHARES:
        of_share = {
            f"{name}, {share:.0%}": list(
                results(f"{name}, {share:.0%}", run, (digits(seed, TRAINING, EPOCHS, share) for seed in seeds))
            )
            for name, run in ONE_NETWORK.items()
        }
        plain, supervised, mimicking = of_share
        gains += [gain(name, of_share[name], plain, of_share[plain]) for name in (supervised, mimicking)]
        gains.append(gain(mimicking, of_share[mimicking], supervised, of_share[supervised]))
        rows |= of_share
    text = "\n".join(
        [
            f"`python examples/corrupted_labels.py --seeds {options.seeds} --first {options.first}`: the same with "
            f"{TRAINING} training images, {SHARES[0]:.0%} and {SHARES[1]:.0%} of which have a label drawn among all "
            f"ten, and {EPOCHS} epochs. Test labels are right.",
            "",
            *table(["one network, random labels", "backbone", "first exit", "second exit"], rows),
            "",
            *gains,
        ]
    )
    print(text)
    if options.out:
        write_section(options.out, "Corrupted labels", text)


if __name__ == "__main__":
    main()
