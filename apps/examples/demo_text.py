"""A short text to train on, and words as tokens of a checkpoint folder's vocab.json: the demo model brings no tokenizer."""

import json
import pathlib

TEXT = ("The ship left the harbour at dawn , and the old captain stood alone at the bow . The wind came from the north ,"
        " cold and steady , and the sea was the colour of iron . He had promised his daughter that he would be home"
        " before the first snow , and he meant to keep his word . Far behind them the lights of the town went out , one"
        " after the other , until there was nothing left but the dark line of the coast .")
PROMPT = "The ship left the harbour at"
SPACE = "\u0120"  # how byte-level vocabularies write a leading space


class Words:
    def __init__(self, folder):
        self.ids = json.loads((pathlib.Path(folder) / "vocab.json").read_text())
        self.tokens = {index: token for token, index in self.ids.items()}

    def encode(self, text):
        """Ids of words that are one token each, as all words above are."""
        first, *rest = text.split()
        return [self.ids[first]] + [self.ids[word if word in ",." else SPACE + word] for word in rest]

    def decode(self, ids):
        return "".join(self.tokens[int(index)] for index in ids).replace(SPACE, " ").replace("\u010a", "\n")
