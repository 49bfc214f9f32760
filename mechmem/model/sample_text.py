"""Default text to compare models on: a story, an explanation, a letter, markup and code."""

TEXT = '''The ferry to the island left twice a day, once before the bakery opened and once after the school bell. Marta
had taken the early boat for eleven years, always on the left side, always with a thermos of coffee that she shared with
the deckhand, and in all that time she had never asked his name. It was written on his jacket, but the letters had faded
into the cloth, and after the third year it would have been rude to ask. He called her Professor, although she repaired
clocks. On the morning this story begins, the boat was late, the coffee was cold, and a stranger sat in her place with a
birdcage on his knees. There was no bird in the cage. There was a loaf of bread, a folded map, and a brass key as long
as a finger.

"You are sitting on the warm side," she said, because it was easier than saying what she meant.

"I know," said the stranger. "The engine is under us. I used to oil it." He moved the cage a little, which was not the
same as moving himself. "They tell me that the clock in the harbour has stopped. They tell me that you are the one who
will open it, and that you do not have the key."

Tides are easier to predict than the weather, and for a simple reason: the moon does not change its mind. Its pull is a
little stronger on the near side of the earth than at the centre, and a little weaker on the far side, so the water of
the oceans is stretched along the line between the two bodies. As the earth turns, a harbour passes through both bulges
and has two high waters in a little more than twenty-four hours and fifty minutes. The sun does the same with less than
half the strength. When the two pull along one line, at new moon and at full moon, the range is large; when they pull at
right angles, it is small. Coasts, shelves and narrow channels do the rest, which is why two towns thirty kilometres
apart may see the sea rise by one metre and by nine. A table made by fitting a few dozen sine waves to a year of
measurements stays correct within centimetres for decades, long before anyone solves an equation of fluid motion.

Dear Mr. Okafor,

Thank you for your letter of 14 March. We have looked at invoice 20817 again and you are right: the second delivery of
240 roof tiles was charged twice, at 1.85 each, which makes a difference of 444.00 in your favour. The amount will be on
your account within five working days. The broken ridge tiles are another matter. Our driver noted no damage when he
unloaded them, and the photographs you sent show the pallet after it had been opened. If your neighbour, who signed for
it, can tell us in what state it arrived, we shall gladly raise it with the carrier. Please write to claims@example.org
or call 555-0142 between 8 a.m. and 4 p.m., and mention the number above.

Yours sincerely,
H. Lindqvist, Customer Accounts

<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>Harbour timetable</title>
    <link rel="stylesheet" href="/static/harbour.css?v=12">
  </head>
  <body class="wide">
    <h1 id="top">Departures</h1>
    <table border="0" cellpadding="4">
      <tr><th>Boat</th><th>Leaves</th><th>Arrives</th></tr>
      <tr><td>Petrel</td><td>06:10</td><td>07:25</td></tr>
      <tr><td>Petrel</td><td>15:40</td><td>16:55</td></tr>
    </table>
    <p>No bicycles on Sundays. <a href="https://example.org/fares">Fares</a> &middot; <a href="#top">Back to top</a></p>
  </body>
</html>

from dataclasses import dataclass


@dataclass
class Wave:
    """One part of a tide: amplitude in metres, period in hours, phase in radians."""

    amplitude: float
    period: float
    phase: float = 0.0


def height(waves: list[Wave], hour: float, mean_level: float = 0.0) -> float:
    """Water level above the chart's zero at a given hour."""
    total = mean_level
    for wave in waves:
        total += wave.amplitude * math.cos(2 * math.pi * hour / wave.period + wave.phase)
    return total


if __name__ == "__main__":
    moon, sun = Wave(1.42, 12.42), Wave(0.51, 12.00, 0.3)
    for hour in range(0, 25, 3):
        print(f"{hour:02d}:00  {height([moon, sun], hour, mean_level=2.1):5.2f} m")

The clock in the harbour had stopped at ten past four, and nobody could say of which day. Marta set her bag on the steps
and listened. People think that a stopped clock is silent, but wood goes on moving, weights hang and turn, and a spring
that cannot let go sings very softly, like a wet finger on the rim of a glass. She held out her hand without looking
round, and the stranger laid the key in it.
'''
