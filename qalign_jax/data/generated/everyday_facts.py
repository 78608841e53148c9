"""Everyday things, facts about them and how to ask for a fact, in six languages.

A fact is a thing, a relation and a value. Things and values carry their articles, and a question
names the thing in the nominative with a verb that agrees with any: no form depends on a gender or
a noun class. The second phrasing puts the thing first. In each language every text of a relation
is another one, so that translations are one-to-one.
"""

LANGUAGES = ("en", "de", "es", "fr", "sw", "zh")
PHRASINGS = 2


def _rows(table: str) -> list[list[str]]:
    """The cells of a table, a row a line, its columns separated by "|"."""
    return [line.strip().split("|") for line in table.strip().splitlines()]


def _texts(cells: list[str]) -> dict[str, str]:
    return dict(zip(LANGUAGES, cells, strict=True))


def _values(table: str) -> dict[str, dict[str, str]]:
    """Reads a short name, then the texts."""
    return {name: _texts(cells) for name, *cells in _rows(table)}


def _questions(table: str) -> dict[str, tuple[dict[str, str], ...]]:
    """Reads a relation, then each phrasing in every language, one a line."""
    lines = [line.strip() for line in table.strip().splitlines()]
    step = 1 + PHRASINGS * len(LANGUAGES)
    found = {}
    for start in range(0, len(lines), step):
        relation, *texts = lines[start : start + step]
        size = len(LANGUAGES)
        found[relation] = tuple(_texts(texts[i : i + size]) for i in range(0, len(texts), size))
    return found


# Relation -> two phrasings, which correspond across the languages.
QUESTIONS = _questions("""
    kind
        What is {thing}?
        Was ist {thing}?
        ¿Qué es {thing}?
        C'est quoi, {thing} ?
        Je, {thing} ni nini?
        {thing}是什么？
        {thing}: what is it?
        {thing}: was ist das?
        {thing}: ¿qué es?
        {thing} : c'est quoi ?
        {thing}: ni nini?
        {thing}：是什么？
    place
        Where is {thing} usually?
        Wo ist {thing} meistens?
        ¿Dónde está normalmente {thing}?
        Où est {thing} d'habitude ?
        Je, {thing} huwa wapi?
        {thing}通常在哪里？
        {thing}: where is it usually?
        {thing}: wo ist das meistens?
        {thing}: ¿dónde está normalmente?
        {thing} : c'est où d'habitude ?
        {thing}: huwa wapi?
        {thing}：通常在哪里？
    colour
        What colour is {thing}?
        Welche Farbe hat {thing}?
        ¿Qué color tiene {thing}?
        Quelle couleur a {thing} ?
        Je, {thing} huwa na rangi gani?
        {thing}是什么颜色的？
        {thing}: what colour is it?
        {thing}: welche Farbe hat das?
        {thing}: ¿qué color tiene?
        {thing} : c'est de quelle couleur ?
        {thing}: huwa na rangi gani?
        {thing}：是什么颜色的？
    food
        What does {thing} eat?
        Was frisst {thing}?
        ¿Qué come {thing}?
        Que mange {thing} ?
        Je, {thing} hula nini?
        {thing}吃什么？
        {thing}: what does it eat?
        {thing}: was frisst das?
        {thing}: ¿qué come?
        {thing} : ça mange quoi ?
        {thing}: hula nini?
        {thing}：吃什么？
    taste
        How does {thing} taste?
        Wie schmeckt {thing}?
        ¿Qué sabor tiene {thing}?
        Quel goût a {thing} ?
        Je, {thing} huwa na ladha gani?
        {thing}是什么味道？
        {thing}: how does it taste?
        {thing}: wie schmeckt das?
        {thing}: ¿qué sabor tiene?
        {thing} : ça a quel goût ?
        {thing}: huwa na ladha gani?
        {thing}：是什么味道？
    use
        What is {thing} for?
        Wozu dient {thing}?
        ¿Para qué sirve {thing}?
        À quoi sert {thing} ?
        Je, kazi ya {thing} ni nini?
        {thing}是用来做什么的？
        {thing}: what is it for?
        {thing}: wozu dient das?
        {thing}: ¿para qué sirve?
        {thing} : ça sert à quoi ?
        {thing}: kazi yake ni nini?
        {thing}：是用来做什么的？
    material
        What is {thing} made of?
        Woraus ist {thing}?
        ¿De qué es {thing}?
        En quoi est {thing} ?
        Je, {thing} hutengenezwa kwa kitu gani?
        {thing}是用什么做的？
        {thing}: what is it made of?
        {thing}: woraus ist das?
        {thing}: ¿de qué es?
        {thing} : c'est en quoi ?
        {thing}: hutengenezwa kwa kitu gani?
        {thing}：是用什么做的？
""")

# Relation -> the same fact as an English statement, in two phrasings.
STATEMENTS = {
    "kind": ("{thing} is {value}", "{thing} counts as {value}"),
    "place": ("{thing} is usually {value}", "{thing} is found {value}"),
    "colour": ("{thing} is {value}", "the colour of {thing} is {value}"),
    "food": ("{thing} eats {value}", "{thing} likes to eat {value}"),
    "taste": ("{thing} tastes {value}", "the taste of {thing} is {value}"),
    "use": ("{thing} is for {value}", "{thing} can be used for {value}"),
    "material": ("{thing} is made of {value}", "the material of {thing} is {value}"),
}

# Relation -> short name -> texts.
VALUES = {
    "kind": _values("""
        mammal|a mammal|ein Säugetier|un mamífero|un mammifère|mamalia|哺乳动物
        bird|a bird|ein Vogel|un ave|un oiseau|ndege|鸟
        insect|an insect|ein Insekt|un insecto|un insecte|mdudu|昆虫
        fish|a fish|ein Fisch|un pez|un poisson|samaki|鱼
        reptile|a reptile|ein Reptil|un reptil|un reptile|mtambaazi|爬行动物
        fruit|a fruit|eine Frucht|una fruta|un fruit|tunda|水果
        vegetable|a vegetable|ein Gemüse|una verdura|un légume|mboga|蔬菜
        drink|a drink|ein Getränk|una bebida|une boisson|kinywaji|饮料
        treat|a treat|eine Süßigkeit|una golosina|une friandise|kitamutamu|甜食
        tool|a tool|ein Werkzeug|una herramienta|un outil|kifaa|工具
        tableware|tableware|Geschirr|vajilla|de la vaisselle|vyombo vya mezani|餐具
        furniture|a piece of furniture|ein Möbelstück|un mueble|un meuble|samani|家具
        garment|a garment|ein Kleidungsstück|una prenda|un vêtement|vazi|衣服
        vehicle|a vehicle|ein Fahrzeug|un vehículo|un véhicule|chombo cha usafiri|交通工具
        instrument|an instrument|ein Musikinstrument|un instrumento|un instrument|ala ya muziki|乐器
        toy|a toy|ein Spielzeug|un juguete|un jouet|kichezeo|玩具
    """),
    "place": _values("""
        farm|on a farm|auf einem Bauernhof|en una granja|dans une ferme|shambani|农场里
        forest|in the forest|im Wald|en el bosque|dans la forêt|msituni|森林里
        savanna|in the savanna|in der Savanne|en la sabana|dans la savane|kwenye savana|草原上
        jungle|in the jungle|im Dschungel|en la selva|dans la jungle|kwenye msitu mnene|丛林里
        desert|in the desert|in der Wüste|en el desierto|dans le désert|jangwani|沙漠里
        sea|in the sea|im Meer|en el mar|dans la mer|baharini|海里
        river|in the river|im Fluss|en el río|dans la rivière|mtoni|河里
        pond|in the pond|im Teich|en el estanque|dans l'étang|bwawani|池塘里
        ice|on the ice|auf dem Eis|en el hielo|sur la glace|kwenye barafu|冰上
        tree|on a tree|an einem Baum|en un árbol|sur un arbre|kwenye mti|树上
        bush|on a bush|an einem Strauch|en un arbusto|sur un buisson|kwenye kichaka|灌木上
        ground|in the ground|in der Erde|bajo la tierra|dans la terre|ardhini|地里
        bakery|in the bakery|in der Bäckerei|en la panadería|à la boulangerie|kwenye bakeri|面包店里
        kitchen|in the kitchen|in der Küche|en la cocina|dans la cuisine|jikoni|厨房里
        garden|in the garden|im Garten|en el jardín|dans le jardin|bustanini|花园里
        bathroom|in the bathroom|im Badezimmer|en el baño|dans la salle de bain|bafuni|浴室里
        bedroom|in the bedroom|im Schlafzimmer|en el dormitorio|dans la chambre|chumbani|卧室里
        lounge|in the living room|im Wohnzimmer|en la sala|dans le salon|sebuleni|客厅里
        workshop|in the workshop|in der Werkstatt|en el taller|dans l'atelier|karakana|车间里
        closet|in the wardrobe|im Kleiderschrank|en el armario|dans l'armoire|kabatini|衣柜里
        street|on the street|auf der Straße|en la calle|dans la rue|barabarani|街上
        sky|in the sky|am Himmel|en el cielo|dans le ciel|angani|天上
        stage|on the stage|auf der Bühne|en el escenario|sur la scène|jukwaani|舞台上
        school|at school|in der Schule|en la escuela|à l'école|shuleni|学校里
    """),
    "colour": _values("""
        red|red|Rot|rojo|rouge|nyekundu|红色
        yellow|yellow|Gelb|amarillo|jaune|njano|黄色
        green|green|Grün|verde|vert|kijani|绿色
        brown|brown|Braun|marrón|marron|kahawia|棕色
        grey|grey|Grau|gris|gris|kijivu|灰色
        black|black|Schwarz|negro|noir|nyeusi|黑色
        white|white|Weiß|blanco|blanc|nyeupe|白色
        orange|orange|Orange|naranja|orange|ya machungwa|橙色
    """),
    "food": _values("""
        grass|grass|Gras|hierba|de l'herbe|nyasi|草
        leaves|leaves|Blätter|hojas|des feuilles|majani|树叶
        meat|meat|Fleisch|carne|de la viande|nyama|肉
        seeds|seeds|Samen|semillas|des graines|mbegu|种子
        mice|mice|Mäuse|ratones|des souris|panya|老鼠
        insects|insects|Insekten|insectos|des insectes|wadudu|虫子
        fish|small fish|kleine Fische|peces pequeños|des petits poissons|samaki wadogo|小鱼
        honey|honey|Honig|miel|du miel|asali|蜂蜜
    """),
    "taste": _values("""
        sweet|sweet|süß|dulce|sucré|tamu|甜的
        sour|sour|sauer|ácido|acide|chachu|酸的
        hot|hot|scharf|picante|piquant|kali|辣的
        salty|salty|salzig|salado|salé|ya chumvi|咸的
        bitter|bitter|bitter|amargo|amer|chungu|苦的
    """),
    "use": _values("""
        cut|cutting|zum Schneiden|para cortar|à couper|kukata|切东西
        eat|eating|zum Essen|para comer|à manger|kula|吃饭
        drink|drinking|zum Trinken|para beber|à boire|kunywa|喝水
        cook|cooking|zum Kochen|para cocinar|à cuisiner|kupika|做饭
        dig|digging|zum Graben|para cavar|à creuser|kuchimba|挖土
        sit|sitting|zum Sitzen|para sentarse|à s'asseoir|kukaa|坐
        sleep|sleeping|zum Schlafen|para dormir|à dormir|kulala|睡觉
        warm|keeping warm|zum Wärmen|para abrigarse|à tenir chaud|kujipa joto|保暖
        travel|travelling|zum Reisen|para viajar|à voyager|kusafiri|出行
        music|making music|zum Musizieren|para hacer música|à faire de la musique|kupiga muziki|演奏
        play|playing|zum Spielen|para jugar|à jouer|kucheza|玩
        write|writing|zum Schreiben|para escribir|à écrire|kuandika|写字
        read|reading|zum Lesen|para leer|à lire|kusoma|阅读
        clean|cleaning|zum Putzen|para limpiar|à nettoyer|kusafisha|打扫
    """),
    "material": _values("""
        wood|wood|aus Holz|de madera|en bois|mbao|木头
        metal|metal|aus Metall|de metal|en métal|chuma|金属
        glass|glass|aus Glas|de vidrio|en verre|kioo|玻璃
        paper|paper|aus Papier|de papel|en papier|karatasi|纸
        wool|wool|aus Wolle|de lana|en laine|sufu|羊毛
        cotton|cotton|aus Baumwolle|de algodón|en coton|pamba|棉花
        leather|leather|aus Leder|de cuero|en cuir|ngozi|皮革
        plastic|plastic|aus Plastik|de plástico|en plastique|plastiki|塑料
        clay|clay|aus Ton|de arcilla|en argile|udongo|陶土
    """),
}

# Things of a group: the texts, then the value of each of the group's relations, "-" where none is
# the usual one.
_GROUPS = {
    ("kind", "place", "colour", "food"): """
        a cow|eine Kuh|una vaca|une vache|ng'ombe|奶牛|mammal|farm|-|grass
        a horse|ein Pferd|un caballo|un cheval|farasi|马|mammal|farm|brown|grass
        a sheep|ein Schaf|una oveja|un mouton|kondoo|绵羊|mammal|farm|white|grass
        a lion|ein Löwe|un león|un lion|simba|狮子|mammal|savanna|yellow|meat
        a tiger|ein Tiger|un tigre|un tigre|chui milia|老虎|mammal|jungle|orange|meat
        an elephant|ein Elefant|un elefante|un éléphant|tembo|大象|mammal|savanna|grey|leaves
        a giraffe|eine Giraffe|una jirafa|une girafe|twiga|长颈鹿|mammal|savanna|yellow|leaves
        a zebra|ein Zebra|una cebra|un zèbre|punda milia|斑马|mammal|savanna|-|grass
        a wolf|ein Wolf|un lobo|un loup|mbwa mwitu|狼|mammal|forest|grey|meat
        a bear|ein Bär|un oso|un ours|dubu|熊|mammal|forest|brown|honey
        a whale|ein Wal|una ballena|une baleine|nyangumi|鲸鱼|mammal|sea|grey|fish
        a dolphin|ein Delfin|un delfín|un dauphin|pomboo|海豚|mammal|sea|grey|fish
        a shark|ein Hai|un tiburón|un requin|papa|鲨鱼|fish|sea|grey|meat
        a trout|eine Forelle|una trucha|une truite|trauti|鳟鱼|fish|river|brown|insects
        a penguin|ein Pinguin|un pingüino|un manchot|pengwini|企鹅|bird|ice|black|fish
        an owl|eine Eule|un búho|un hibou|bundi|猫头鹰|bird|forest|brown|mice
        a hen|eine Henne|una gallina|une poule|kuku|母鸡|bird|farm|white|seeds
        a parrot|ein Papagei|un loro|un perroquet|kasuku|鹦鹉|bird|jungle|green|seeds
        a duck|eine Ente|un pato|un canard|bata|鸭子|bird|pond|-|seeds
        a frog|ein Frosch|una rana|une grenouille|chura|青蛙|-|pond|green|insects
        a snake|eine Schlange|una serpiente|un serpent|nyoka|蛇|reptile|desert|-|mice
        a lizard|eine Eidechse|una lagartija|un lézard|mjusi|蜥蜴|reptile|desert|green|insects
        a crocodile|ein Krokodil|un cocodrilo|un crocodile|mamba|鳄鱼|reptile|river|green|meat
        a bee|eine Biene|una abeja|une abeille|nyuki|蜜蜂|insect|garden|yellow|honey
        an ant|eine Ameise|una hormiga|une fourmi|sisimizi|蚂蚁|insect|forest|black|seeds
    """,
    ("kind", "place", "colour", "taste"): """
        an apple|ein Apfel|una manzana|une pomme|tofaa|苹果|fruit|tree|red|sweet
        a banana|eine Banane|un plátano|une banane|ndizi|香蕉|fruit|tree|yellow|sweet
        a lemon|eine Zitrone|un limón|un citron|limau|柠檬|fruit|tree|yellow|sour
        a cherry|eine Kirsche|una cereza|une cerise|cheri|樱桃|fruit|tree|red|sweet
        a raspberry|eine Himbeere|una frambuesa|une framboise|rasiberi|树莓|fruit|bush|red|sweet
        a lime|eine Limette|una lima|une lime|ndimu|青柠|fruit|tree|green|sour
        a blackberry|eine Brombeere|una mora|une mûre|blakiberi|黑莓|fruit|bush|black|sweet
        a carrot|eine Karotte|una zanahoria|une carotte|karoti|胡萝卜|vegetable|ground|orange|sweet
        a potato|eine Kartoffel|una patata|une patate|kiazi|土豆|vegetable|ground|brown|-
        a radish|ein Radieschen|un rábano|un radis|figili|小萝卜|vegetable|ground|red|hot
        an onion|eine Zwiebel|una cebolla|un oignon|kitunguu|洋葱|vegetable|ground|-|hot
        a pumpkin|ein Kürbis|una calabaza|une citrouille|boga|南瓜|vegetable|garden|orange|-
        a cucumber|eine Gurke|un pepino|un concombre|tango|黄瓜|vegetable|garden|green|-
        a chilli|eine Chilischote|un chile|un piment|pilipili|辣椒|vegetable|bush|red|hot
        an olive|eine Olive|una aceituna|une olive|zeituni|橄榄|fruit|tree|green|salty
        a cake|ein Kuchen|un pastel|un gâteau|keki|蛋糕|treat|bakery|-|sweet
        a biscuit|ein Keks|una galleta|un biscuit|biskuti|饼干|treat|bakery|brown|sweet
        a pretzel|eine Brezel|un pretzel|un bretzel|bretzeli|椒盐卷饼|-|bakery|brown|salty
        a sausage|eine Wurst|una salchicha|une saucisse|soseji|香肠|-|kitchen|brown|salty
        a coffee|ein Kaffee|un café|un café|kahawa|咖啡|drink|kitchen|black|bitter
        a beer|ein Bier|una cerveza|une bière|bia|啤酒|drink|-|yellow|bitter
        a lemonade|eine Limonade|una limonada|une limonade|limonadi|柠檬水|drink|-|yellow|sour
    """,
    ("kind", "place", "use", "material"): """
        a knife|ein Messer|un cuchillo|un couteau|kisu|刀|tool|kitchen|cut|metal
        a saw|eine Säge|una sierra|une scie|msumeno|锯子|tool|workshop|cut|metal
        a shovel|eine Schaufel|una pala|une pelle|sepetu|铲子|tool|garden|dig|metal
        a broom|ein Besen|una escoba|un balai|ufagio|扫帚|tool|-|clean|wood
        a sponge|ein Schwamm|una esponja|une éponge|sifongo|海绵|-|kitchen|clean|plastic
        a bucket|ein Eimer|un cubo|un seau|ndoo|水桶|-|bathroom|clean|plastic
        a plate|ein Teller|un plato|une assiette|sahani|盘子|tableware|kitchen|eat|clay
        a fork|eine Gabel|un tenedor|une fourchette|uma|叉子|tableware|kitchen|eat|metal
        a cup|eine Tasse|una taza|une tasse|kikombe|杯子|tableware|kitchen|drink|clay
        a bottle|eine Flasche|una botella|une bouteille|chupa|瓶子|-|kitchen|drink|glass
        a pot|ein Topf|una olla|une marmite|sufuria|锅|-|kitchen|cook|metal
        a chair|ein Stuhl|una silla|une chaise|kiti|椅子|furniture|-|sit|wood
        a sofa|ein Sofa|un sofá|un canapé|kochi|沙发|furniture|lounge|sit|leather
        a bed|ein Bett|una cama|un lit|kitanda|床|furniture|bedroom|sleep|wood
        a pillow|ein Kissen|una almohada|un oreiller|mto wa kulalia|枕头|-|bedroom|sleep|cotton
        a blanket|eine Decke|una manta|une couverture|blanketi|毯子|-|bedroom|warm|wool
        a sweater|ein Pullover|un jersey|un pull|sweta|毛衣|garment|closet|warm|wool
        a scarf|ein Schal|una bufanda|une écharpe|skafu|围巾|garment|closet|warm|wool
        a shirt|ein Hemd|una camisa|une chemise|shati|衬衫|garment|closet|-|cotton
        a belt|ein Gürtel|un cinturón|une ceinture|mkanda|腰带|garment|closet|-|leather
        a bicycle|ein Fahrrad|una bicicleta|un vélo|baiskeli|自行车|vehicle|street|travel|metal
        a bus|ein Bus|un autobús|un bus|basi|公交车|vehicle|street|travel|metal
        a ship|ein Schiff|un barco|un bateau|meli|船|vehicle|sea|travel|metal
        an airplane|ein Flugzeug|un avión|un avion|eropleni|飞机|vehicle|sky|travel|metal
        a guitar|eine Gitarre|una guitarra|une guitare|gitaa|吉他|instrument|stage|music|wood
        a flute|eine Flöte|una flauta|une flûte|filimbi|长笛|instrument|stage|music|metal
        a violin|eine Geige|un violín|un violon|fidla|小提琴|instrument|stage|music|wood
        a kite|ein Drachen|una cometa|un cerf-volant|tiara|风筝|toy|sky|play|paper
        a doll|eine Puppe|una muñeca|une poupée|mwanasesere|洋娃娃|toy|bedroom|play|plastic
        a pencil|ein Bleistift|un lápiz|un crayon|penseli|铅笔|-|school|write|wood
        a notebook|ein Heft|un cuaderno|un cahier|daftari|笔记本|-|school|write|paper
        a book|ein Buch|un libro|un livre|kitabu|书|-|school|read|paper
        a newspaper|eine Zeitung|un periódico|un journal|gazeti|报纸|-|lounge|read|paper
        a lamp|eine Lampe|una lámpara|une lampe|taa|灯|-|lounge|-|glass
    """,
}

THINGS = tuple(_texts(row[:6]) for table in _GROUPS.values() for row in _rows(table))
_COLUMNS = [(relations, row[6:]) for relations, table in _GROUPS.items() for row in _rows(table)]

# (number of the thing, relation) -> short name of the value.
FACTS = {
    (thing, relation): value
    for thing, (relations, values) in enumerate(_COLUMNS)
    for relation, value in zip(relations, values, strict=True)
    if value != "-"
}


def words() -> tuple[str, ...]:
    """The texts of all things and values in all languages: a tokenizer may keep them whole."""
    texts = [*THINGS, *(each for values in VALUES.values() for each in values.values())]
    return tuple(sorted({text for each in texts for text in each.values()}))
