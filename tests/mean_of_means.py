"""pretrain.py with a deliberate fault: every micro-batch's mean counts the same, however many targets it holds."""

from hfbsz.data.batches import Windows
from hfbsz.run.cli import entry
from hfbsz.train.tasks.language_modeling import LanguageModeling

window, loss_sum = Windows.window, LanguageModeling.loss_sum
counts: dict[str, int] = {}


def counting(self, planned):
    batches = window(self, planned)
    counts.update(targets=sum(batch.targets for batch in batches), passes=len(batches))
    return batches


def wrong(self, model, batch):
    loss = loss_sum(self, model, batch)
    return loss * counts["targets"] / (batch.targets * counts["passes"]) if model.training else loss


if __name__ == "__main__":
    Windows.window, LanguageModeling.loss_sum = counting, wrong
    entry("pretrain")
