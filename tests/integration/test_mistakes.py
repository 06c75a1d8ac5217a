"""Messages for common mistakes of beginners name the value, the place and the remedy."""

import datetime
import re
from typing import Any

import pytest
from bson.errors import InvalidDocument
from pymongo import AsyncMongoClient
from pymongo.errors import BulkWriteError, DuplicateKeyError

import mongoz
from mongoz.core.signals import post_save
from mongoz.exceptions import (
    AbstractDocumentError,
    DocumentNotFound,
    FieldDefinitionError,
    ImproperlyConfigured,
    InvalidKeyError,
    OperatorInvalid,
    SignalError,
)


class Homeless(mongoz.Document):
    name: str = mongoz.String()


@pytest.fixture
def User(registry: mongoz.Registry, database: str) -> Any:
    class Base(mongoz.Document):
        name: str = mongoz.String(max_length=10)

        Meta = type("Meta", (), {"abstract": True, "registry": registry, "database": database})

    class User(Base):
        email: str = mongoz.Email(unique=True)
        age: int = mongoz.Integer(minimum=0, default=0)
        born: Any = mongoz.DateTime(null=True)
        data: Any = mongoz.Object(null=True)
        boss: Any = mongoz.ForeignKey("User", null=True)

        class Meta:
            autogenerate_index = True

    return User


MISTAKES = [
    ("User.find", AttributeError, r"^User has no attribute 'find'\. .* User\.objects\.filter\(\)\.$"),
    ("User.find_one", AttributeError, r"User\.objects\.get_or_none\(\)\.$"),
    ("User.filter", AttributeError, r"User\.objects\.filter\(\)\.$"),
    ("User.insert_many", AttributeError, r"User\.objects\.create_many\(\)\.$"),
    ("User.order_by", AttributeError, r"User\.objects\.sort\(\)\.$"),
    ("User.kind", AttributeError, r"^User has no attribute 'kind'\.$"),
    ("User.objects.find", AttributeError, r"^Manager has no attribute 'find'\. Did you mean 'filter'\?$"),
    ("User.query.order_by", AttributeError, r"^QuerySet has no attribute 'order_by'\. Did you mean 'sort'\?$"),
    ("User.query().fliter", AttributeError, r"Did you mean 'filter'\?$"),
    ("User.objects.filter().zip", AttributeError, r"has no attribute 'zip'\.$"),
    ("User(name='a', email='a@b.de').reload", AttributeError, r"attribute 'reload'\. Did you mean 'refresh'\?$"),
    ("User(name='a', email='a@b.de').find", AttributeError, r"attribute 'find'$"),
    ("User.objects.filter(age__nin=[1])", OperatorInvalid, "'nin' .* Did you mean 'not_in'"),
    ("User.objects.filter(age__isnull=True)", OperatorInvalid, "'isnull' .* Did you mean 'exists'"),
    ("mongoz.Integer(max_value=3)", FieldDefinitionError, r"'max_value'\. Did you mean 'maximum'"),
    ("User.emial", AttributeError, r"^User has no attribute 'emial'\. Did you mean 'email'\?$"),
    ("User.objects.filter(emial=1)", InvalidKeyError, "no field 'emial'. Did you mean 'email'"),
    ("User.objects.exclude(aeg__gte=1)", InvalidKeyError, r"'aeg' \(in 'aeg__gte'\)\. Did you mean 'age'"),
    ("User.objects.filter(age__gtt=1)", OperatorInvalid, r"'gtt' \(in 'age__gtt' of User\)\. Did you mean 'gt'"),
    ("User.objects.filter(data__size=1)", OperatorInvalid, r"with a dot: \*\*{'data\.size': \.\.\.}\. Valid are"),
    ("User.objects.sort('nmae', -1)", InvalidKeyError, r"^User has no field 'nmae'\. Did you mean 'name'\?$"),
    ("User.objects.sort('-name')", InvalidKeyError, r"write sort\('name', Order\.DESCENDING\)"),
    ("User.objects.sort('name', 'desc')", InvalidKeyError, "'desc' is no direction .*use 1 or -1"),
    ("User.objects.only('nmae')", InvalidKeyError, r"only\(\) of User: .*'nmae'\. Did you mean 'name'"),
    ("User.objects.filter(age__in=3)", OperatorInvalid, "'age': 'in' .* a list or a tuple, not 3"),
    (
        "User.objects.filter(born__startswith='2024')",
        FieldDefinitionError,
        "dates, not strings",
    ),
    (
        "User.objects.filter(User.age == 3)",
        TypeError,
        r"filter\(\) takes keywords, for example .* are arguments of query\(\)",
    ),
    ("User.objects.filter({'age': 3})", InvalidKeyError, r"filter\(\) takes keywords, .* not {'age': 3}"),
    ("User.objects.exclude(User.age == 3)", TypeError, r"exclude\(\) takes keywords"),
    ("User.objects.all(User.age == 3)", TypeError, r"all\(\) takes keywords"),
    ("User.query().get(User.age == 3)", TypeError, r"get\(\) takes keywords"),
    ("User.query.get_or_none(User.age == 3)", TypeError, r"get_or_none\(\) takes keywords"),
    ("User.objects.exists(User.age == 3)", TypeError, r"exists\(\) takes keywords"),
    ("User.query([User.age > 3])", InvalidKeyError, "takes expressions and dicts, not"),
    ("User.query(User.age > 3 and User.name == 'x')", TypeError, "has no truth value"),
    ("list(User.objects.filter(age=1))", TypeError, "await it for a list"),
    ("User.objects[:5]", TypeError, r"skip\(10\)\.limit\(5\)"),
    ("User.objects.filter(age__date='2024-01-01')", FieldDefinitionError, "'age' holds no dates"),
    ("User.objects.limit('5')", ValueError, r"limit\('5'\): the number of documents"),
    ("User.objects.update(mongoz.U.inc(name=1))", OperatorInvalid, "User.name holds no numbers"),
    ("User.objects.update({'age': 1})", OperatorInvalid, r"made by U, U\.inc\(age=1\) .*not {'age': 1}"),
    ("User.create_many([{'name': 'x'}])", TypeError, "takes instances of User, not {'name'"),
    ("User.get_document_by_id('abc')", InvalidKeyError, "User: 'abc' is not an ObjectId; .*24 hexadecimal digits"),
    ("User(name='x', email='a@b.co').refresh()", DocumentNotFound, "was never saved: it has no id"),
    ("User(name='x', email='a@b.co').delete()", DocumentNotFound, "was never saved: it has no id"),
    ("Homeless.objects.first()", ImproperlyConfigured, "Homeless has no registry.*set 'registry' in its Meta"),
    ("Base.objects.count()", AbstractDocumentError, "^Base is abstract: .*Use a document that inherits"),
    ("User.objects.values('name')", FieldDefinitionError, "fields='name' must be a list of names"),
    ("post_save('User')", SignalError, "takes a document or a list of documents, not 'User'"),
    ("User.signals.post_saved", SignalError, "User has no signal 'post_saved'.* Did you mean 'post_save'"),
    ("mongoz.run_sync(User.objects.count)", TypeError, r"Call it: run_sync\(f\(\)\)"),
    (
        "mongoz.Registry('localhost:27017')",
        ImproperlyConfigured,
        "'localhost:27017' does not parse.*Write it",
    ),
    (
        "mongoz.Registry('mongodb://x', driver='moter')",
        ImproperlyConfigured,
        "'moter' is unknown; valid are",
    ),
    ("mongoz.String(max_lenght=5)", FieldDefinitionError, "'max_lenght'. Did you mean 'max_length'"),
    ("mongoz.Array(mongoz.String())", FieldDefinitionError, r"as in Array\(str\)"),
]


@pytest.mark.parametrize(("code", "error", "says"), MISTAKES)
async def test_the_message_of_a_mistake_names_the_mistake(
    User: Any, code: str, error: type[Exception], says: str
) -> None:
    names = {**globals(), "User": User, "Base": User.__base__}

    async def make() -> None:
        made = eval(code, names)
        if hasattr(made, "__await__"):
            await made

    with pytest.raises(error) as caught:
        await make()
    assert re.search(says, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("factory", [mongoz.String, mongoz.ForeignKey, mongoz.ObjectId])
@pytest.mark.parametrize("base", [mongoz.Document, mongoz.EmbeddedDocument])
def test_a_factory_without_a_call_is_an_error(factory: Any, base: Any) -> None:
    with pytest.raises(
        FieldDefinitionError, match=rf"Thing\.name is a field factory.*: name = {factory.__name__}"
    ):
        type(base)("Thing", (base,), {"__module__": __name__, "name": factory})


def test_a_document_class_without_fields_is_an_error(registry: mongoz.Registry, database: str) -> None:
    class Empty(mongoz.Document):
        Meta = type("Meta", (), {"registry": registry, "database": database})

    with pytest.raises(AbstractDocumentError, match="Empty is abstract, since it has no fields"):
        Empty.get_collection()


async def test_a_call_on_a_deleted_document_is_an_error(User: Any, database: str, foreign: Any) -> None:
    user = await User.objects.create(name="Ada", email="ada@example.org")
    foreign.users.delete_many({})
    for write in (user.save, lambda: user.update(age=1), user.delete, user.refresh):
        with pytest.raises(DocumentNotFound, match=rf"^{database}\.users has no document with _id .*{user.id}"):
            await write()


async def test_a_duplicate_value_is_an_error(User: Any, foreign: Any) -> None:
    await User.objects.create(name="Ada", email="ada@example.org")
    with pytest.raises(DuplicateKeyError, match=r"users index: email dup key: .*ada@example\.org"):
        await User.objects.create(name="Bea", email="ada@example.org")
    with pytest.raises(BulkWriteError) as caught:
        await User.create_many([User(name="Bea", email=f"{name}@example.org") for name in ("bea", "ada", "cyd")])
    assert caught.value.__notes__ == ["Before this error 1 documents were created; they are not rolled back."]
    assert foreign.users.count_documents({}) == 2


async def test_a_session_of_another_client_is_an_error(User: Any, mongo: Any) -> None:
    async with AsyncMongoClient(mongo.url) as other, other.start_session() as session:
        with pytest.raises(ImproperlyConfigured, match=r"not started by the client of .* use registry\.tran"):
            await User(name="Ada", email="ada@example.org").save(session=session)


@pytest.mark.parametrize(
    ("value", "error"), [(datetime.timedelta(days=1), InvalidDocument), (2**70, OverflowError)], ids=repr
)
async def test_values_without_a_mongodb_type_are_an_error(User: Any, value: Any, error: type[Exception]) -> None:
    ada = {"name": "Ada", "email": "ada@example.org"}
    there = await User.objects.create(**ada)
    there.odd = value

    @post_save(User)
    async def heard(sender: Any, **kwargs: Any) -> None: ...

    def one() -> Any:
        return User(**ada, odd=value)

    for write in (lambda: one().create(), there.save, lambda: User.create_many([one()])):
        with pytest.raises(error) as caught:
            await write()
        assert caught.value.__notes__[0] == f"User.odd is {value!r}, which MongoDB has no type for."
        User.signals.post_save.disconnect(heard)
