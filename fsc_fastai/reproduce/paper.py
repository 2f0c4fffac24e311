"Tables II–IV of Sun et al. 2020 as published: accuracy in % with its 95 % interval, 5-way, trained on miniImageNet"
from __future__ import annotations

__all__ = ['DOMAINS', 'PUBLISHED', 'published']

DOMAINS = ('miniImagenet', 'CUB', 'Cars', 'Places', 'Plantae')

_TABLE2 = {  # model: domain: (1-shot, 1-shot transductive, 5-shot, 5-shot transductive), each accuracy and interval
    'RN': {
        'miniImagenet': (58.31, .47, 61.52, .58, 72.72, .37, 73.64, .40), 'CUB': (41.98, .41, 42.52, .48, 58.75, .36, 59.10, .42),
        'Cars': (29.32, .34, 28.56, .37, 38.91, .38, 37.45, .40), 'Places': (50.87, .48, 53.63, .58, 66.47, .41, 67.43, .43),
        'Plantae': (33.53, .36, 33.69, .42, 47.40, .36, 46.51, .40)},
    'LRP-RN': {
        'miniImagenet': (60.06, .47, 62.65, .56, 73.63, .37, 74.67, .39), 'CUB': (42.44, .41, 42.88, .48, 59.30, .40, 59.22, .42),
        'Cars': (29.65, .33, 29.61, .37, 39.19, .38, 38.31, .39), 'Places': (50.59, .46, 53.07, .57, 66.90, .40, 68.25, .43),
        'Plantae': (34.80, .37, 34.54, .42, 48.09, .35, 47.67, .39)},
    'CAN': {
        'miniImagenet': (64.66, .48, 67.74, .54, 79.61, .33, 80.34, .35), 'CUB': (44.91, .41, 46.63, .50, 63.09, .39, 62.09, .43),
        'Cars': (31.44, .35, 30.06, .42, 41.46, .37, 40.17, .40), 'Places': (56.90, .49, 60.70, .58, 72.94, .38, 74.44, .41),
        'Plantae': (36.57, .37, 36.69, .42, 50.45, .36, 48.67, .40)},
    'LRP-CAN': {
        'miniImagenet': (64.65, .46, 69.10, .53, 80.89, .32, 82.56, .33), 'CUB': (46.23, .42, 48.35, .52, 66.58, .39, 66.57, .43),
        'Cars': (32.66, .46, 32.35, .42, 43.86, .38, 42.57, .42), 'Places': (56.96, .48, 61.60, .58, 74.91, .37, 76.90, .39),
        'Plantae': (38.23, .45, 38.48, .43, 53.25, .36, 51.63, .41)},
}
_TABLE3 = {  # model: domain: (1-shot, 5-shot)
    'GNN': {'miniImagenet': (64.47, .55, 80.74, .41), 'Cars': (30.97, .37, 42.59, .42), 'Places': (54.64, .56, 72.14, .45),
            'CUB': (46.76, .50, 63.91, .47), 'Plantae': (37.39, .43, 54.52, .44)},
    'LRP-GNN': {'miniImagenet': (65.03, .54, 82.03, .40), 'Cars': (32.78, .39, 46.20, .46), 'Places': (54.83, .56, 74.45, .47),
                'CUB': (48.29, .51, 64.44, .48), 'Plantae': (37.49, .43, 54.46, .46)},
}
_TABLE4 = {  # model: domain: (1-shot, 5-shot); the other three target domains are the pseudo-unseen ones
    'RN': {'Cars': (29.40, .33, 40.01, .37), 'Places': (48.05, .46, 64.56, .40), 'CUB': (44.33, .43, 62.50, .39),
           'Plantae': (34.57, .38, 47.58, .37)},
    'FT-RN': {'Cars': (30.09, .36, 40.52, .40), 'Places': (48.12, .45, 64.92, .40), 'CUB': (44.87, .44, 61.87, .39),
              'Plantae': (35.53, .39, 48.54, .38)},
    'LRP-RN': {'Cars': (30.00, .32, 41.05, .37), 'Places': (48.74, .45, 66.08, .40), 'CUB': (45.64, .42, 62.71, .39),
               'Plantae': (36.04, .38, 48.78, .37)},
    'LFT-RN': {'Cars': (30.27, .34, 41.51, .39), 'Places': (48.07, .46, 65.35, .40), 'CUB': (47.35, .44, 64.11, .39),
               'Plantae': (35.54, .38, 49.29, .38)},
    'LFT-LRP-RN': {'Cars': (30.68, .34, 42.38, .40), 'Places': (50.19, .47, 66.23, .40), 'CUB': (47.78, .43, 64.62, .39),
                   'Plantae': (36.58, .40, 50.50, .39)},
}


def _rows(table: dict, columns: tuple[tuple[int, bool], ...]) -> dict[tuple, tuple[float, float]]:
    "`table` keyed by (model, domain, shot, transductive)"
    return {(model, domain, *columns[i]): (values[2*i], values[2*i+1])
            for model, domains in table.items() for domain, values in domains.items() for i in range(len(columns))}


_INDUCTIVE = ((1, False), (5, False))
PUBLISHED = {
    'table2': _rows(_TABLE2, ((1, False), (1, True), (5, False), (5, True))),
    'table3': _rows(_TABLE3, _INDUCTIVE),
    'table4': _rows(_TABLE4, _INDUCTIVE),
}


def published(
    table: str, # table2, table3 or table4
    model: str, # Name of the model in the paper, such as LRP-RN
    domain: str, # One of `DOMAINS`
    shot: int, # 1 or 5
    transductive: bool = False, # With transductive inference
) -> tuple[float, float] | None:
    "The published accuracy and interval in %; None if the paper has none"
    return PUBLISHED[table].get((model, domain, shot, transductive))
