"""The sentences of the generated word problems, in six languages.

Every sentence type has three phrasings that correspond across the languages, so that phrasing i of
one is a faithful translation of phrasing i of another. The last is kept aside: stages I and II
never see it. Numbers stand in the same order everywhere. A template names `{name}`, the pronouns
of the person's gender, the forms of the thing that the problem counts, and its numbers.
"""

import dataclasses
from collections.abc import Mapping

PHRASINGS = 3
ASIDE = 2  # the phrasing that only the pretraining text holds


@dataclasses.dataclass(frozen=True)
class Language:
    """Names by person, forms by gender and by thing, and three phrasings by sentence type."""

    names: tuple[str, ...]
    pronouns: tuple[Mapping[str, str], ...]  # feminine, masculine
    things: tuple[Mapping[str, str], ...]
    sentences: Mapping[str, tuple[str, ...]]
    again: str  # what introduces the same problem in other words
    so: str  # between a sentence of a solution, without its full stop, and the equation
    answer: str  # a solution's last sentence
    stop: str = "."
    space: str = " "


def _forms(keys: str, *rows: str) -> tuple[dict[str, str], ...]:
    """One dict a row; the columns of keys and rows are separated by "|"."""
    names = keys.split("|")
    return tuple(dict(zip(names, row.split("|"), strict=True)) for row in rows)


def _sentences(table: str) -> dict[str, tuple[str, ...]]:
    """Reads a sentence type, then its phrasings, one a line."""
    lines = [line.strip() for line in table.strip().split("\n")]
    blocks = range(0, len(lines), 1 + PHRASINGS)
    return {lines[i]: tuple(lines[i + 1 : i + 1 + PHRASINGS]) for i in blocks}


# People and things are the same in every language, in this order; Anna and Sara are women.
_NAMES = ("Anna", "Tom", "Sara", "David")

_ENGLISH = Language(
    names=_NAMES,
    pronouns=_forms("he|He|him", "she|She|her", "he|He|him"),
    things=_forms("things", "oranges", "books", "pencils", "eggs"),
    sentences=_sentences("""
        has
            {name} has {n} {things}.
            In the morning {name} has {n} {things}.
            {name} starts with {n} {things}.
        bags
            {name} has {a} bags with {b} {things} each.
            {name} has {a} bags. There are {b} {things} in each bag.
            {name} brings {a} bags, each holding {b} {things}.
        buy
            {He} buys {n} more.
            Then {he} buys another {n} at the market.
            At the shop {he} buys {n} more.
        find
            {He} finds {n} more.
            Then {he} finds another {n} at home.
            Under the bed {he} finds {n} more.
        receive
            A friend gives {him} {n} more.
            Then {he} gets another {n} from a friend.
            A friend brings {him} {n} more.
        win
            {He} wins {n} more.
            Then {he} wins another {n} in a game.
            In a game {he} wins {n} more.
        give
            {He} gives a friend {n} of them.
            Then {he} hands {n} of them to a friend.
            {He} decides to give a friend {n}.
        lose
            {He} loses {n} of them.
            Then {n} of them get lost.
            On the way {he} loses {n}.
        sell
            {He} sells {n} of them.
            Then {he} sells {n} at the market.
            {He} manages to sell {n}.
        steal
            A thief steals {n} of them.
            Then {n} of them are stolen.
            At night a thief takes {n} away.
        share
            {He} shares all of them equally among {n} children.
            Then {n} children share all of them equally.
            At the end {he} divides them equally among {n} children.
        how_many
            How many {things} does {name} have now?
            How many {things} are there now?
            How many {things} does {name} have at the end?
        how_many_each
            How many {things} does each child get?
            How many {things} are there for each child?
            How many {things} does each of the children receive?
    """),
    again="In other words:",
    so=", so ",
    answer="The answer is {n}.",
)

_GERMAN = Language(
    names=_NAMES,
    pronouns=_forms("he|He|him", "sie|Sie|ihr", "er|Er|ihm"),
    things=_forms(
        "things|with",  # with: the dative plural
        "Orangen|Orangen",
        "Bücher|Büchern",
        "Bleistifte|Bleistiften",
        "Eier|Eiern",
    ),
    sentences=_sentences("""
        has
            {name} hat {n} {things}.
            Am Morgen hat {name} {n} {things}.
            {name} beginnt mit {n} {with}.
        bags
            {name} hat {a} Tüten mit je {b} {with}.
            {name} hat {a} Tüten. In jeder Tüte sind {b} {things}.
            {name} bringt {a} Tüten mit, jede enthält {b} {things}.
        buy
            {He} kauft noch {n}.
            Dann kauft {he} auf dem Markt {n} weitere.
            Im Laden kauft {he} noch {n}.
        find
            {He} findet noch {n}.
            Dann findet {he} zu Hause {n} weitere.
            Unter dem Bett findet {he} noch {n}.
        receive
            Ein Freund gibt {him} noch {n}.
            Dann bekommt {he} von einem Freund {n} weitere.
            Ein Freund bringt {him} noch {n}.
        win
            {He} gewinnt noch {n}.
            Dann gewinnt {he} bei einem Spiel {n} weitere.
            Bei einem Spiel gewinnt {he} noch {n}.
        give
            {He} gibt einem Freund {n} davon.
            Dann überlässt {he} einem Freund {n} davon.
            {He} beschließt, einem Freund {n} zu geben.
        lose
            {He} verliert {n} davon.
            Dann gehen {n} davon verloren.
            Unterwegs verliert {he} {n}.
        sell
            {He} verkauft {n} davon.
            Dann verkauft {he} {n} auf dem Markt.
            {He} schafft es, {n} zu verkaufen.
        steal
            Ein Dieb stiehlt {n} davon.
            Dann werden {n} davon gestohlen.
            In der Nacht nimmt ein Dieb {n} mit.
        share
            {He} verteilt alle gleichmäßig an {n} Kinder.
            Dann teilen {n} Kinder alle gleichmäßig unter sich auf.
            Am Ende teilt {he} sie gleichmäßig unter {n} Kindern auf.
        how_many
            Wie viele {things} hat {name} jetzt?
            Wie viele {things} sind es jetzt?
            Wie viele {things} hat {name} am Ende?
        how_many_each
            Wie viele {things} bekommt jedes Kind?
            Wie viele {things} sind es für jedes Kind?
            Wie viele {things} erhält jedes der Kinder?
    """),
    again="Anders gesagt:",
    so=", also ",
    answer="Die Antwort ist {n}.",
)

_SPANISH = Language(
    names=_NAMES,
    pronouns=({}, {}),  # the verb carries the person
    things=_forms(
        "things|how_many|others|all|them",
        "naranjas|Cuántas|otras|todas|las",
        "libros|Cuántos|otros|todos|los",
        "lápices|Cuántos|otros|todos|los",
        "huevos|Cuántos|otros|todos|los",
    ),
    sentences=_sentences("""
        has
            {name} tiene {n} {things}.
            Por la mañana {name} tiene {n} {things}.
            {name} empieza con {n} {things}.
        bags
            {name} tiene {a} bolsas con {b} {things} cada una.
            {name} tiene {a} bolsas. En cada bolsa hay {b} {things}.
            {name} trae {a} bolsas, y cada una contiene {b} {things}.
        buy
            Compra {n} más.
            Luego compra {others} {n} en el mercado.
            En la tienda compra {n} más.
        find
            Encuentra {n} más.
            Luego encuentra {others} {n} en casa.
            Debajo de la cama encuentra {n} más.
        receive
            Un amigo le da {n} más.
            Luego recibe {others} {n} de un amigo.
            Un amigo le trae {n} más.
        win
            Gana {n} más.
            Luego gana {others} {n} en un juego.
            En un juego gana {n} más.
        give
            Le da {n} a un amigo.
            Luego le entrega {n} a un amigo.
            Decide dar {n} a un amigo.
        lose
            Pierde {n}.
            Luego se pierden {n}.
            En el camino pierde {n}.
        sell
            Vende {n}.
            Luego vende {n} en el mercado.
            Logra vender {n}.
        steal
            Un ladrón roba {n}.
            Luego le roban {n}.
            Por la noche un ladrón se lleva {n}.
        share
            Reparte {all} por igual entre {n} niños.
            Luego {n} niños se reparten {all} por igual.
            Al final {them} divide por igual entre {n} niños.
        how_many
            ¿{how_many} {things} tiene {name} ahora?
            ¿{how_many} {things} hay ahora?
            ¿{how_many} {things} tiene {name} al final?
        how_many_each
            ¿{how_many} {things} recibe cada niño?
            ¿{how_many} {things} hay para cada niño?
            ¿{how_many} {things} obtiene cada uno de los niños?
    """),
    again="En otras palabras:",
    so=", así que ",
    answer="La respuesta es {n}.",
)

_FRENCH = Language(
    names=_NAMES,
    pronouns=_forms("he|He", "elle|Elle", "il|Il"),
    things=_forms(
        "things|of_things",
        "oranges|d'oranges",
        "livres|de livres",
        "crayons|de crayons",
        "œufs|d'œufs",
    ),
    sentences=_sentences("""
        has
            {name} a {n} {things}.
            Le matin, {name} a {n} {things}.
            {name} commence avec {n} {things}.
        bags
            {name} a {a} sacs de {b} {things} chacun.
            {name} a {a} sacs. Dans chaque sac, il y a {b} {things}.
            {name} apporte {a} sacs qui contiennent chacun {b} {things}.
        buy
            {He} en achète {n} de plus.
            Puis {he} en achète {n} autres au marché.
            Au magasin, {he} en achète encore {n}.
        find
            {He} en trouve {n} de plus.
            Puis {he} en trouve {n} autres à la maison.
            Sous le lit, {he} en trouve encore {n}.
        receive
            Un ami lui en donne {n} de plus.
            Puis {he} en reçoit {n} autres d'un ami.
            Un ami lui en apporte encore {n}.
        win
            {He} en gagne {n} de plus.
            Puis {he} en gagne {n} autres à un jeu.
            À un jeu, {he} en gagne encore {n}.
        give
            {He} en donne {n} à un ami.
            Puis {he} en remet {n} à un ami.
            {He} décide d'en donner {n} à un ami.
        lose
            {He} en perd {n}.
            Puis {n} se perdent.
            En chemin, {he} en perd {n}.
        sell
            {He} en vend {n}.
            Puis {he} en vend {n} au marché.
            {He} réussit à en vendre {n}.
        steal
            Un voleur en vole {n}.
            Puis on lui en vole {n}.
            La nuit, un voleur en emporte {n}.
        share
            {He} partage tout à parts égales entre {n} enfants.
            Puis {n} enfants se partagent tout à parts égales.
            À la fin, {he} les répartit à parts égales entre {n} enfants.
        how_many
            Combien {of_things} {name} a-t-{he} maintenant ?
            Combien {of_things} y a-t-il maintenant ?
            Combien {of_things} {name} a-t-{he} à la fin ?
        how_many_each
            Combien {of_things} chaque enfant reçoit-il ?
            Combien {of_things} y a-t-il pour chaque enfant ?
            Combien {of_things} chacun des enfants obtient-il ?
    """),
    again="Autrement dit :",
    so=", donc ",
    answer="La réponse est {n}.",
)

_SWAHILI = Language(
    names=_NAMES,
    pronouns=({}, {}),  # the verb carries the person
    things=_forms(
        "things|others|how_many|all|they",  # agreement by noun class; they: the subject prefix
        "machungwa|mengine|mangapi|yote|ya",
        "vitabu|vingine|vingapi|vyote|vi",
        "penseli|nyingine|ngapi|zote|zi",
        "mayai|mengine|mangapi|yote|ya",
    ),
    sentences=_sentences("""
        has
            {name} ana {things} {n}.
            Asubuhi {name} ana {things} {n}.
            {name} anaanza na {things} {n}.
        bags
            {name} ana mifuko {a} yenye {things} {b} kila mmoja.
            {name} ana mifuko {a}. Katika kila mfuko kuna {things} {b}.
            {name} analeta mifuko {a}, na kila mmoja una {things} {b}.
        buy
            Ananunua {n} zaidi.
            Kisha ananunua {others} {n} sokoni.
            Dukani ananunua {n} zaidi.
        find
            Anaokota {n} zaidi.
            Kisha anaokota {others} {n} nyumbani.
            Chini ya kitanda anaokota {n} zaidi.
        receive
            Rafiki anampa {n} zaidi.
            Kisha anapokea {others} {n} kutoka kwa rafiki.
            Rafiki anamletea {n} zaidi.
        win
            Anashinda {n} zaidi.
            Kisha anashinda {others} {n} katika mchezo.
            Katika mchezo anashinda {n} zaidi.
        give
            Anampa rafiki {n}.
            Kisha anamkabidhi rafiki {n}.
            Anaamua kumpa rafiki {n}.
        lose
            Anapoteza {n}.
            Kisha {n} {they}napotea.
            Njiani anapoteza {n}.
        sell
            Anauza {n}.
            Kisha anauza {n} sokoni.
            Anafanikiwa kuuza {n}.
        steal
            Mwizi anaiba {n}.
            Kisha {n} {they}naibwa.
            Usiku mwizi anachukua {n}.
        share
            Anagawa {all} sawasawa kwa watoto {n}.
            Kisha watoto {n} wanagawana {all} sawasawa.
            Mwishoni anagawanya {all} sawasawa kati ya watoto {n}.
        how_many
            Sasa {name} ana {things} {how_many}?
            Sasa kuna {things} {how_many}?
            Mwishoni {name} ana {things} {how_many}?
        how_many_each
            Kila mtoto anapata {things} {how_many}?
            Kuna {things} {how_many} kwa kila mtoto?
            Kila mmoja wa watoto anapokea {things} {how_many}?
    """),
    again="Kwa maneno mengine:",
    so=", hivyo ",
    answer="Jibu ni {n}.",
)

_CHINESE = Language(
    names=("安娜", "汤姆", "萨拉", "大卫"),
    pronouns=_forms("he", "她", "他"),
    things=_forms(
        "things|m",  # m: the measure word
        "橙子|个",
        "书|本",
        "铅笔|支",
        "鸡蛋|个",
    ),
    sentences=_sentences("""
        has
            {name}有 {n} {m}{things}。
            早上{name}有 {n} {m}{things}。
            {name}一开始有 {n} {m}{things}。
        bags
            {name}有 {a} 个袋子，每个装着 {b} {m}{things}。
            {name}有 {a} 个袋子。每个袋子里有 {b} {m}{things}。
            {name}带来 {a} 个袋子，每袋有 {b} {m}{things}。
        buy
            {he}又买了 {n} {m}。
            然后{he}在市场上又买了 {n} {m}。
            {he}在商店里又买了 {n} {m}。
        find
            {he}又找到 {n} {m}。
            然后{he}在家里又找到 {n} {m}。
            {he}在床底下又找到 {n} {m}。
        receive
            朋友又给了{he} {n} {m}。
            然后{he}从朋友那里又得到 {n} {m}。
            朋友又带给{he} {n} {m}。
        win
            {he}又赢了 {n} {m}。
            然后{he}在游戏中又赢了 {n} {m}。
            {he}玩游戏又赢了 {n} {m}。
        give
            {he}给了朋友 {n} {m}。
            然后{he}交给朋友 {n} {m}。
            {he}决定给朋友 {n} {m}。
        lose
            {he}丢了 {n} {m}。
            然后有 {n} {m}不见了。
            {he}在路上丢了 {n} {m}。
        sell
            {he}卖了 {n} {m}。
            然后{he}在市场上卖了 {n} {m}。
            {he}成功卖出 {n} {m}。
        steal
            小偷偷走了 {n} {m}。
            然后有 {n} {m}被偷了。
            夜里小偷拿走了 {n} {m}。
        share
            {he}把它们全部平均分给 {n} 个孩子。
            然后 {n} 个孩子平分了全部。
            最后{he}把它们平均分给 {n} 个孩子。
        how_many
            {name}现在有多少{m}{things}？
            现在一共有多少{m}{things}？
            {name}最后有多少{m}{things}？
        how_many_each
            每个孩子得到多少{m}{things}？
            每个孩子有多少{m}{things}？
            每个孩子能分到多少{m}{things}？
    """),
    again="换句话说：",
    so="，所以 ",
    answer="答案是 {n}。",
    stop="。",
    space="",
)

LANGUAGES = {
    "en": _ENGLISH,
    "de": _GERMAN,
    "es": _SPANISH,
    "fr": _FRENCH,
    "sw": _SWAHILI,
    "zh": _CHINESE,
}
