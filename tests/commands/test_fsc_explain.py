
from fsc_fastai.commands.fsc_explain import fsc_explain


def test_explain_writes_a_picture(trained):
    image = trained/'hues'/'novel'/'novel0'/'0.png'
    fsc_explain(trained/'learner.pkl', trained/'hues'/'novel', str(image), out=trained/'maps'/'heat.png', beside=True,
                published=True)
    assert (trained/'maps'/'heat.png').stat().st_size > 1000


def test_explain_writes_vectors_and_compares_two_classes(trained):
    image = trained/'hues'/'novel'/'novel0'/'0.png'
    fsc_explain(trained/'learner.pkl', trained/'hues'/'novel', str(image), out=trained/'maps'/'heat.svg',
                against='novel1', cmap='PuOr_r')
    drawn = (trained/'maps'/'heat.svg').read_text()
    assert drawn.startswith('<?xml') and '<!-- novel2 -->' in drawn and '<!-- novel1 -->' in drawn
