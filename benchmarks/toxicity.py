"""Toxicity: precision and recall of each backend that is here, on forty short labelled sentences of our own.

Ten crude insults, ten insults or threats in polite words, ten harmless uses of words that stand on profanity lists, and
ten from medicine and news that speak of harm: twenty hostile, twenty not. They were written to be hard for a word list,
so the figures say why a backend errs and not how often it would on your corpus. A sentence is flagged above the default
threshold of its backend. There is no peer: the comparison is between the word list and, where its weights are on this
machine, Detoxify's classifier.
"""

import json

import pyarrow as pa

from pipeline_lib.config.clean import ToxicitySettings
from pipeline_lib.text_cleaning.toxicity import load_scorer
from pipeline_lib.text_cleaning.toxicity_backend import describe_backend, weights_folder

SENTENCES = {
    "crude insults": (
        "You are such an asshole, nobody asked you.",
        "Shut up, you dumbass, and read the question.",
        "What a stupid bastard he is.",
        "This whole team is full of shit and so are you.",
        "Get lost, you pathetic prick.",
        "Only a jackass would write code like that.",
        "You lying dickhead, give it back.",
        "He is a worthless shithead and everyone knows it.",
        "Piss off, you and your whole family.",
        "She is a bitch and deserves to fail.",
    ),
    "hostile in polite words": (
        "You are worthless and nobody would miss you.",
        "People like you should not be allowed to have children.",
        "I know where you live, and you will regret this.",
        "Your kind is not welcome here, go back where you came from.",
        "You must be the most stupid person I have ever met.",
        "I hope you lose everything and cry about it.",
        "Someone ought to teach that idiot a painful lesson.",
        "Women are too dumb to do this job.",
        "Keep talking and you will end up in hospital.",
        "You disgust me, you filthy liar.",
    ),
    "harmless uses of listed words": (
        "The farmer led his ass to the well before noon.",
        "The cock crowed at dawn and woke the village.",
        "William the Bastard became king of England in 1066.",
        "The breeder's bitch gave birth to five healthy puppies.",
        "Dick Turpin was a highwayman of the eighteenth century.",
        "Great tits and blue tits visit the garden in winter.",
        "A thorn will prick your finger if you are careless.",
        "The chef served spotted dick with custard.",
        "She graduated cum laude from the university.",
        "Fire-retarded fabric is sewn into the curtains.",
    ),
    "medicine and news": (
        "The patient reported pain in the breast and a discharge for two weeks.",
        "Two men were killed and nine injured in the attack on Friday.",
        "The court sentenced him for threatening his former wife.",
        "Symptoms of the infection include fever, vomiting and diarrhoea.",
        "The report describes hatred against minorities in the camps.",
        "Doctors removed a tumour from the lower rectum.",
        "The minister called the accusation false and malicious.",
        "Suicide is a leading cause of death among young adults.",
        "Police found the body of the victim near the river.",
        "The museum documents slavery and the violence that sustained it.",
    ),
}
HOSTILE = ("crude insults", "hostile in polite words")


def main() -> None:
    """Print one line for each backend."""
    backends = ["words", *(["detoxify"] if weights_folder(ToxicitySettings().model) else [])]
    for backend in backends:
        settings = ToxicitySettings(backend=backend)
        limit = settings.max_word_share if backend == "words" else settings.max_score
        scorer = load_scorer(settings)
        flagged = {
            group: int((scorer.score(pa.array(texts, pa.large_string())) > limit).sum())
            for group, texts in SENTENCES.items()
        }
        right = sum(flagged[group] for group in HOSTILE)
        precision = right / max(sum(flagged.values()), 1)
        recall = right / sum(len(SENTENCES[group]) for group in HOSTILE)
        line = {
            "claim": f"toxicity of labelled sentences: {describe_backend(settings)['backend']}",
            "ours": f"precision {precision:.2f}, recall {recall:.2f}",
            "peer": "none",
            "ratio": "",
            "quality": ", ".join(f"{group} {flagged[group]} of {len(SENTENCES[group])}" for group in SENTENCES),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
