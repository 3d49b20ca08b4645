"""The phrases that captions of icon scenes are made of; see captions.py for which fits when."""

SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("",), "large": ("large", "big", "huge")}
NUMBER_WORDS = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the middle", "in the center"),
}
CORNER_WORDS = ("in the {} corner", "at the {}", "in the {}")
OPENERS = (
    "a picture of",
    "an image of",
    "an icon of",
    "a 3d icon of",
    "an emoji of",
    "a drawing of",
    "a photo of",
    "draw",
    "show me",
    "an illustration of",
)
STYLES = (
    "3d icon",
    "icon",
    "emoji",
    "3d render",
    "illustration",
    "clip art",
    "cartoon",
    "cute",
    "high quality",
    "simple",
)

GROUND_WORDS = {
    "sky": (
        "in the sky",
        "in the blue sky",
        "against a blue sky",
        "in front of a cloudy sky",
        "with clouds behind",
        "in a blue sky with clouds",
        "among the clouds",
    ),
    "night": (
        "at night",
        "at night",
        "in the night sky",
        "in the night",
        "under the stars",
        "on a starry night",
        "in the dark with stars",
        "in a starry sky",
        "in space",
    ),
    "sunset": (
        "at sunset",
        "at sunset",
        "in front of a sunset",
        "at dusk",
        "in the evening",
        "against a sunset sky",
        "at sundown",
    ),
    "grass": (
        "on green grass",
        "on the grass",
        "on grass",
        "in a meadow",
        "on a green meadow",
        "in a green field",
        "on a lawn",
        "in the grass",
    ),
    "snow": (
        "in the snow",
        "in the snow",
        "on snow",
        "on a snowy field",
        "in winter",
        "in a snowy landscape",
        "on white snow",
    ),
    "sea": (
        "on the sea",
        "at sea",
        "in the sea",
        "on the ocean",
        "in the ocean",
        "on the water",
        "in front of the sea",
        "by the sea",
    ),
    "sand": ("in the desert", "on sand", "on the sand", "in a sandy desert", "on sand dunes", "on yellow sand"),
    "wood": (
        "on a wooden table",
        "on wood",
        "on a wooden floor",
        "on wooden boards",
        "on brown planks",
        "against a wooden wall",
    ),
}
GROUND_NAMES = {
    "sky": ("blue sky", "cloudy sky", "sky"),
    "night": ("night sky", "starry night", "night", "starry sky"),
    "sunset": ("sunset", "sunset sky"),
    "grass": ("grass", "green meadow", "meadow"),
    "snow": ("snow", "snowy", "winter"),
    "sea": ("sea", "ocean"),
    "sand": ("desert", "sand"),
    "wood": ("wooden", "wood"),
}
PLAIN_FORMS = (
    "on {a_x} background",
    "on {a_x} background",
    "on {x}",
    "against {a_x} background",
    "with {a_x} background",
    "in front of {a_x} background",
    "on plain {x}",
    "on {a_x} backdrop",
)

# what things do, by category or stance, in front of the words for the ground
VERBS = {
    "face": ("sitting", "resting"),
    "animals": ("standing", "walking"),
    "body": ("standing", "walking", "strolling", "running"),
    "plants": ("growing", "standing"),
    "vehicles": ("parked", "driving", "standing"),
    "buildings": ("standing",),
    "sky": ("flying", "high up"),
    "boats": ("sailing", "floating"),
    "swimmers": ("swimming",),
}
VERB_GROUNDS = {"sky": ("sky", "night", "sunset"), "boats": ("sea",), "swimmers": ("sea",)}

TURNED = (", mirrored", ", flipped", " facing the other way")
TILTED = {15: (", tilted", ", tilted to the left"), -15: (", tilted", ", tilted to the right")}
ON_GRADIENT = ("on {} background", "on {}", "with {} background", "against {}")
OTHERS = (
    "a an the some in row of and background whole pale sky gray upper lower",
    *TURNED,
    *TILTED[15],
    *TILTED[-15],
)

# {a} stands left of {b}
BESIDE = (
    "{a} to the left of {b}",
    "{a} left of {b}",
    "{a} on the left of {b}",
    "{b} to the right of {a}",
    "{b} right of {a}",
    "{b} on the right of {a}",
    "{a} on the left and {b} on the right",
    "{b} on the right and {a} on the left",
    "{a} on the left, {b} on the right",
    "{a} and {b}",
    "{a} and {b}",
    "{a} and {b}",
    "{a} and {b} side by side",
    "{a} next to {b}",
    "{a} beside {b}",
    "{a} with {b}",
)
ABOVE = (
    "{a} above {b}",
    "{a} above {b}",
    "{a} above {b}",
    "{a} over {b}",
    "{a} on top of {b}",
    "{b} below {a}",
    "{b} under {a}",
    "{b} beneath {a}",
    "{b} with {a} above it",
    "{a} at the top and {b} at the bottom",
)
# {a} is behind
IN_FRONT = (
    "{b} in front of {a}",
    "{b} in front of {a}",
    "{b} in front of {a}",
    "{a} behind {b}",
    "{b} before {a}",
    "{b} with {a} behind it",
    "{a} with {b} in front of it",
)
THREE = (
    "{a}, {b} and {c}",
    "{a}, {b} and {c}",
    "{a}, {b}, and {c}",
    "{a}, {b} and {c} in a row",
    "{a}, {b} and {c} from left to right",
    "{a} on the left, {b} in the middle and {c} on the right",
)
