"""Makes the packaged atlas of drawings for maintainers: `python -m dlproxy.lab.casestudy.shop.drawings FOLDER` (README.md).

FOLDER has the npm packages unpacked, each under its own name. Needs Pillow and resvg-py. Not aware of: uploads, models.
"""

import io
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from dlproxy.lab.casestudy.shop.catalogue import ACROSS, ATLAS, CATEGORIES, INDEX, SIDE, STYLES

GOODS = {
    "clothing": "tophat womans_hat billed_cap mortar_board necktie shirt jeans dress kimono bikini womans_clothes sari "
    "lab_coat safety_vest scarf gloves coat socks one-piece_swimsuit briefs shorts martial_arts_uniform "
    "running_shirt_with_sash",
    "shoes": "mans_shoe athletic_shoe high_heel sandal boot hiking_boot womans_flat_shoe ballet_shoes thong_sandal",
    "accessories": "school_satchel eyeglasses dark_sunglasses goggles purse handbag pouch briefcase luggage shopping_bags "
    "lipstick ring gem prayer_beads crown watch umbrella folding_hand_fan hair_pick ribbon",
    "electronics": "iphone telephone_receiver phone pager fax computer desktop_computer printer three_button_mouse trackball "
    "keyboard battery electric_plug camera video_camera movie_camera tv vhs film_projector radio joystick "
    "floppy_disk cd minidisc bulb flashlight satellite_antenna",
    "music": "studio_microphone microphone headphones saxophone guitar musical_keyboard trumpet violin drum_with_drumsticks "
    "maracas flute banjo accordion long_drum postal_horn bell",
    "sport": "bowling tennis ski basketball football rugby_football cricket_bat_and_ball volleyball "
    "field_hockey_stick_and_ball ice_hockey_stick_and_puck table_tennis_paddle_and_ball badminton_racquet_and_shuttlecock sled "
    "diving_mask goal_net boxing_glove curling_stone lacrosse softball flying_disc soccer baseball golf ice_skate roller_skate "
    "skateboard bow_and_arrow boomerang",
    "toys": "teddy_bear yo-yo kite magic_wand pinata nesting_dolls jigsaw game_die black_joker mahjong chess_pawn dart gun "
    "slot_machine 8ball crystal_ball balloon mirror_ball dolls",
    "tools": "wrench hammer nut_and_bolt compression hammer_and_wrench toolbox magnet axe carpentry_saw screwdriver "
    "ladder hook hammer_and_pick gear pick chains bricks wood plunger bucket mouse_trap fire_extinguisher key lock old_key",
    "office": "ledger notebook notebook_with_decorative_cover closed_book green_book books scroll newspaper file_folder "
    "card_index clipboard pushpin straight_ruler triangular_ruler card_file_box file_cabinet spiral_note_pad "
    "spiral_calendar_pad scissors lower_left_ballpoint_pen lower_left_fountain_pen lower_left_paintbrush lower_left_crayon "
    "pencil2 memo abacus package",
    "household": "door toilet shower bathtub couch_and_lamp bed lotion_bottle safety_pin broom basket roll_of_paper soap "
    "sponge chair razor mirror window toothbrush candle mantelpiece_clock alarm_clock teapot amphora jar spoon "
    "fork_and_knife hocho frame_with_picture thread yarn",
    "groceries": "tomato grapes melon watermelon tangerine lemon banana pineapple apple green_apple pear peach cherries "
    "strawberry kiwifruit coconut mango blueberries olive hot_pepper corn eggplant avocado cucumber potato carrot peanuts "
    "broccoli leafy_green garlic onion bell_pepper bread croissant baguette_bread bagel cheese_wedge butter canned_food egg "
    "poultry_leg cut_of_meat bacon",
    "sweets": "icecream shaved_ice ice_cream doughnut cookie chocolate_bar candy lollipop custard honey_pot cake birthday pie "
    "cupcake pancakes waffle moon_cake fortune_cookie popcorn pretzel",
    "drinks": "tea sake wine_glass cocktail tropical_drink beer beers baby_bottle champagne clinking_glasses tumbler_glass "
    "glass_of_milk cup_with_straw beverage_box mate_drink bubble_tea coffee",
    "garden": "tulip cherry_blossom rose hibiscus sunflower blossom bouquet lotus hyacinth seedling evergreen_tree palm_tree "
    "cactus herb potted_plant four_leaf_clover christmas_tree mushroom",
}
QUALITY, COVER = 78, 22  # of WebP: colours, transparency


def main(folder: Path) -> None:
    """Writes atlas and index beside this file. Raises KeyError for a name that a package lacks."""
    known = {found["short_name"]: found for found in _json(folder, "emoji-datasource-google", "emoji.json")}
    words = {found["hexcode"]: found for found in _json(folder, "emojibase-data", "en/data.json")}
    products, drawings = [], []
    for category in CATEGORIES:
        for short in GOODS[category].split():
            code = known[short]["unified"]
            said = words.get(code) or words[code.removesuffix("-FE0F")]
            products.append({"name": said["label"], "words": _plain(said), "category": category})
            drawings.append([_drawing(folder, style, code.lower()) for style in STYLES])
    rows = -(-len(products) // ACROSS)
    atlas = Image.new("RGBA", (ACROSS * len(STYLES) * SIDE, rows * SIDE))
    for number, styles in enumerate(drawings):
        for column, drawing in enumerate(styles):
            left = (number % ACROSS * len(STYLES) + column) * SIDE
            atlas.paste(drawing, (left, number // ACROSS * SIDE))
    atlas.save(ATLAS, "WEBP", quality=QUALITY, alpha_quality=COVER, method=4)
    lines = ",\n".join(json.dumps(product, ensure_ascii=False) for product in products)
    INDEX.write_text(f"[\n{lines}\n]\n", "utf-8")


def _json(folder: Path, package: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / package / name).read_text("utf-8"))
    return found


def _plain(said: dict[str, Any]) -> list[str]:
    """The words of its name, then what people call it, one word each."""
    every = " ".join([said["label"], *said.get("tags", [])]).lower().replace("-", " ").split()
    return [word for word in dict.fromkeys(every) if word.isalpha() and len(word) > 1]


def _drawing(folder: Path, style: str, code: str) -> Image.Image:
    short = code.removesuffix("-fe0f")
    if style == "noto":
        found: Image.Image = Image.open(folder / "emoji-datasource-google/img/google/64" / f"{code}.png")
    elif style == "twemoji":
        found = _rendered(folder / "@twemoji/svg" / f"{short}.svg")
    else:
        flat = style == "fluent-flat"
        there = folder / ("@lobehub/fluent-emoji-flat/assets" if flat else "@lobehub/fluent-emoji-3d/assets")
        ending = "svg" if flat else "webp"
        path = next(path for name in (code, short, f"{short}-fe0f") if (path := there / f"{name}.{ending}").exists())
        found = _rendered(path) if flat else Image.open(path)
    found = found.convert("RGBA")
    return found.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _rendered(path: Path) -> Image.Image:
    drawn = import_module("resvg_py").svg_to_bytes(svg_path=str(path), width=4 * SIDE, height=4 * SIDE)
    return Image.open(io.BytesIO(bytes(drawn)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
