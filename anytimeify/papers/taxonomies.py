"""The labels of the papers' data sets, of several granularities: CIFAR-100, ImageNet-Subtree, CUB."""

from __future__ import annotations

from itertools import pairwise

from anytimeify.taxonomy import Taxonomy

__all__ = ["cifar100", "cub", "subtree"]

# Classes are numbered as in the files of the data set: both granularities in alphabetical order.
_CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

_SUBTREE = {
    "natural object": {
        "fruit": "strawberry, orange, lemon, fig, pineapple, banana, jackfruit, custard apple, pomegranate",
    },
    "plant": {
        "vegetable": "head cabbage, broccoli, cauliflower, zucchini, spaghetti squash, acorn squash, butternut squash, "
        "cucumber, artichoke",
        "flower": "daisy, yellow lady's slipper, cardoon",
    },
    "animal": {
        "dog": "Siberian husky, Australian terrier, English springer, Walker hound, Weimaraner, soft coated wheaten "
        "terrier, Old English sheepdog, French bulldog, Basenji, Bernese mountain dog, Maltese dog, Doberman, Boston "
        "bull, Greater Swiss mountain dog",
        "cat": "Egyptian cat, Persian cat, tiger cat, Siamese cat, Madagascar cat",
        "fish": "great white shark, tiger shark, hammerhead, electric ray, stingray, barracouta, coho, tench, "
        "goldfish, eel",
        "bird": "goldfinch, robin, bulbul, jay, bald eagle, vulture, peacock, macaw, hummingbird, black swan",
    },
    "artifact": {
        "instrument": "grand piano, drum, maraca, cello, violin, harp, acoustic guitar, trombone, harmonica, sax",
        "vehicle": "airship, speedboat, yawl, trimaran, submarine, mountain bike, freight car, passenger car, minivan, "
        "sports car",
        "furniture": "park bench, barber chair, throne, folding chair, rocking chair, studio couch, toilet seat, desk, "
        "pool table, dining table",
        "construction": "suspension bridge, viaduct, barn, greenhouse, palace, monastery, library, boathouse, church, "
        "mosque",
    },
}


def cifar100() -> Taxonomy:
    """The 100 classes of CIFAR-100 and the 20 above them, five each, with the indices of the data set."""
    above = {name: coarse for coarse, names in _CIFAR100.items() for name in names.split()}
    return Taxonomy.from_parents(
        [list(_CIFAR100).index(above[name]) for name in sorted(above)],
        granularities=("fine", "coarse"),
        classes=(sorted(above), list(_CIFAR100)),
    )


def subtree(*, fine_heads: bool = False) -> Taxonomy:
    """The labels of NestedNet for ImageNet: 4 classes above 11 above 100, for three levels. The core predicts the 4,
    the middle level the 11, the full one the 100; with `fine_heads` the lower levels predict the 100 as well, for a
    consensus, and still serve their own.

    Classes are numbered in the order in which the paper's Table 1 prints them. Which of the 4 fruit, vegetables and
    flowers belong to is a reading of the text; cats are printed without the word.
    """
    tree = {top: {kind: names.split(", ") for kind, names in kinds.items()} for top, kinds in _SUBTREE.items()}
    names = ("sub", "intermediate", "super")
    own = tuple(reversed(names))
    heads = [(name,) if name == "sub" or not fine_heads else ("sub", name) for name in own]
    return Taxonomy.from_tree(tree, granularities=names).with_levels(heads=heads, serve=own)


def cub() -> Taxonomy:
    """Labels of the sizes that Lee and Shin 2018 have for CUB-200-2011: 200 species below 183, 149 and 80 classes.

    Which class belongs where the paper does not print: here classes are shared out in order, as evenly as can be, so
    that the network has heads of the right sizes. Give `build(taxonomy=Taxonomy.load(FILE))` for labels to train on.
    """
    sizes = (200, 183, 149, 80)
    maps = [[index * above // below for index in range(below)] for below, above in pairwise(sizes)]
    return Taxonomy.from_parents(*maps, granularities=("species", "third", "second", "first"))
