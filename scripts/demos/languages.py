"""A language identifier, as somebody might have it lying about: a plain function that knows no network.

Naive Bayes over the letters' n-grams (1 to 3, word boundaries included), trained on the sentences below when
it is imported. No library, deterministic, and right about any ordinary sentence of these eight languages.

    modelnet-peer publish languages:identify --model demo/language-id --task text-classification

Source: Cavnar and Trenkle, N-Gram-Based Text Categorization, 1994; Dunning, Statistical Identification of
Language, 1994.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import exp, log

LONGEST = 3  # letters of an n-gram: enough to know "sch", "ção" and "the"
SMOOTHING = 0.5  # what an unseen n-gram counts; less than one sighting

SENTENCES = {
    "de": """Ich weiß nicht, ob das heute noch geht, aber wir können es versuchen. Die Kinder spielen im
        Garten, während die Mutter das Essen kocht. Der Zug nach Berlin fährt um acht Uhr von Gleis drei
        ab. Es war einmal ein König, der hatte drei Töchter. Wenn es morgen regnet, bleiben wir zu Hause
        und lesen ein Buch. Wir haben gestern lange über die Arbeit gesprochen und sind müde nach Hause
        gegangen. Das ist mir zu teuer.""",
    "en": """I do not know whether this still works today, but we can try. The children are playing in
        the garden while their mother is cooking the meal. The train to London leaves at eight o'clock
        from platform three. Once upon a time there was a king who had three daughters. If it rains
        tomorrow, we will stay at home and read a book. Yesterday we talked about the work for a long
        time and went home tired. That is too much for me.""",
    "es": """No sé si esto todavía funciona hoy, pero podemos intentarlo. Los niños juegan en el jardín
        mientras su madre prepara la comida. El tren para Madrid sale a las ocho de la vía tres. Había
        una vez un rey que tenía tres hijas. Si mañana llueve, nos quedaremos en casa y leeremos un
        libro. Ayer hablamos mucho tiempo del trabajo y volvimos cansados a casa. Eso es demasiado caro
        para mí. ¿Dónde están las llaves?""",
    "fr": """Je ne sais pas si cela marche encore aujourd'hui, mais nous pouvons essayer. Les enfants
        jouent dans le jardin pendant que leur mère prépare le repas. Le train pour Paris part à huit
        heures du quai numéro trois. Il était une fois un roi qui avait trois filles. S'il pleut demain,
        nous resterons à la maison et nous lirons un livre. Hier nous avons parlé longtemps du travail
        et nous sommes rentrés fatigués. C'est trop cher.""",
    "it": """Non so se questo funziona ancora oggi, ma possiamo provare. I bambini giocano nel giardino
        mentre la loro madre prepara il pranzo. Il treno per Roma parte alle otto dal binario tre. C'era
        una volta un re che aveva tre figlie. Se domani piove, resteremo a casa e leggeremo un libro.
        Ieri abbiamo parlato a lungo del lavoro e siamo tornati a casa stanchi. Questo è troppo caro per
        me. Che cosa vuoi fare della tua vita?""",
    "nl": """Ik weet niet of dit vandaag nog werkt, maar we kunnen het proberen. De kinderen spelen in
        de tuin terwijl hun moeder het eten kookt. De trein naar Amsterdam vertrekt om acht uur van
        spoor drie. Er was eens een koning die drie dochters had. Als het morgen regent, blijven we
        thuis en lezen we een boek. Gisteren hebben we lang over het werk gepraat en we zijn moe naar
        huis gegaan. Dat is mij te duur. Waar zijn de sleutels?""",
    "pt": """Não sei se isto ainda funciona hoje, mas podemos tentar. As crianças brincam no jardim
        enquanto a mãe prepara a comida. O comboio para Lisboa parte às oito horas da linha três. Era
        uma vez um rei que tinha três filhas. Se chover amanhã, ficaremos em casa e leremos um livro.
        Ontem falámos muito tempo do trabalho e voltámos cansados para casa. Isso é caro demais para
        mim. Onde estão as chaves? Você não tem razão.""",
    "sv": """Jag vet inte om det här fortfarande fungerar i dag, men vi kan försöka. Barnen leker i
        trädgården medan deras mor lagar maten. Tåget till Stockholm går klockan åtta från spår tre. Det
        var en gång en kung som hade tre döttrar. Om det regnar i morgon stannar vi hemma och läser en
        bok. I går pratade vi länge om arbetet och gick trötta hem. Det är för dyrt för mig. Var är
        nycklarna? Hon har aldrig varit där förut.""",
}


def grams(text: str) -> Iterator[str]:
    """Every n-gram of every word, in lower case, a space on both sides of the word."""
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        padded = f" {word} "
        for length in range(1, LONGEST + 1):
            for start in range(len(padded) - length + 1):
                yield padded[start : start + length]


COUNTS = {language: Counter(grams(text)) for language, text in SENTENCES.items()}
VOCABULARY = len(set().union(*COUNTS.values()))
TOTALS = {language: counts.total() + SMOOTHING * VOCABULARY for language, counts in COUNTS.items()}


def identify(text: str, top: int = 3) -> list[dict[str, object]]:
    """The `top` likeliest languages of `text`, best first: [{"label": "nl", "score": probability}]."""
    found = list(grams(text))
    logs = {
        language: sum(log((counts[gram] + SMOOTHING) / TOTALS[language]) for gram in found)
        for language, counts in COUNTS.items()
    }
    best = max(logs.values())
    weights = {language: exp(value - best) for language, value in logs.items()}
    ranked = sorted(weights, key=lambda language: (-weights[language], language))
    whole = sum(weights.values())
    return [{"label": language, "score": weights[language] / whole} for language in ranked[:top]]
